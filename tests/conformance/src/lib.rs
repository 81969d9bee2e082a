//! Behaviour that every runtime must show, as runnable cases.
