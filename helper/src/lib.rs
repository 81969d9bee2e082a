//! The small static program that runs beside or inside a container, embedded as bytes.
