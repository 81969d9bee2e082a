//! One contract for running containers to their end: run, watch, collect, cleanup.
