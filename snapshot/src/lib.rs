//! Backstay snapshot.
