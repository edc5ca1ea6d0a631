//! HTTP/2: its own silences, its own slow readers.
