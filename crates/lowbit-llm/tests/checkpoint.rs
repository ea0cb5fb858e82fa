//! Checkpoints: reading, converting and writing them, and what hostile ones are told.

mod checkpoint {
    mod calibrate;
    mod convert;
    mod edited;
    mod foreign;
    mod golden;
    mod hostile;
    mod output;
    mod support;
}
