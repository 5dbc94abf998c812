//! The agent's integration tests: the real binary on real evidence, one module a theme.
