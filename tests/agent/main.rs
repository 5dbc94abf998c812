//! The agent's integration tests: the real binary on real evidence, one module a theme.

mod bundle;
mod cli;
mod evidence;
mod names;
mod processes;
mod reading;
mod rules;
mod support;
mod vm;
