//! What the tests that drive real daemons share.
