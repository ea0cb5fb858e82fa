//! The command from outside: what it prints, where, and with which status.

mod basics;
mod bench;
mod convert;
mod hostile;
mod models;
mod support;
mod tune;
