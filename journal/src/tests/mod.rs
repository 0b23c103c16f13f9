//! Tests of the journal as a whole, on the simulated media and store.
