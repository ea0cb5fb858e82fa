//! Checkpoints: reading, converting and writing them, and what hostile ones are told.

mod checkpoint {
    mod golden;
    mod support;
}
