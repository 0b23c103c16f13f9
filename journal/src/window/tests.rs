//! Targets, windows and gaps.
