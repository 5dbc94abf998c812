//! Evidence that is damaged, hostile, locked, or none at all.
use super::*;
