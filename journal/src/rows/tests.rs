//! Rows read back as they were written.
