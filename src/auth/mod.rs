//! Who asks, and may they: the bearer key of a request, found by its SHA-256, and the scope its route needs.

pub mod key;
