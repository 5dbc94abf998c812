//! `cleanroom-lambda`: the controller's door in AWS Lambda, with three entrances: intake, step, contain-only.

mod account;
mod doors;
mod environment;
mod invocation;
mod log;
mod metrics;
mod root;

fn main() -> std::process::ExitCode {
    root::run()
}
