//! Prints the times that containment takes at 50 ms a call, and the longest chain of dependent calls.
//!
//! On a paused clock, so the figures are counts of dependent calls and the same on every machine; the memory is the
//! process's own. Touches nothing but standard output.

#[path = "measure.rs"]
mod measure;
#[path = "support.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod support;

use std::{io::Write as _, time::Duration};

use cleanroom_cloud_fake::{CallRecord, World};

const LATENCY: Duration = Duration::from_millis(50);

/// Why a call has to wait for the one before it.
fn reason(call: &CallRecord) -> &'static str {
    match (call.operation.as_str(), call.resource.as_str()) {
        ("sts:GetCallerIdentity", _) => "who calls: the account and Region of the claim",
        ("ec2:DescribeInstances", _) => {
            "the instance: there is nothing to claim before it is known"
        }
        ("s3:PutObject", key) if key.starts_with("instances/") => "the claim: one case an instance",
        ("s3:PutObject", key) if key.ends_with("/000001.json") => {
            "the original state: recorded before anything is changed"
        }
        ("s3:PutObject", _) => "the log: intent before the act, result after",
        ("ec2:DescribeNetworkInterfaces", _) => {
            "a look at the interfaces, before the cut or after it"
        }
        (operation, _) if operation.contains("Describe") || operation.contains("Get") => {
            "a look, before acting or after it"
        }
        ("ec2:ModifyNetworkInterfaceAttribute", _) => "the cut",
        _ => "an act that isolation waits for",
    }
}

fn print(out: &mut impl std::io::Write, name: &str, times: &measure::Times) -> std::io::Result<()> {
    writeln!(out, "{name}")?;
    writeln!(out, "  new flows cut and read back   {:>6.2} s", times.contained.as_secs_f64())?;
    let later = times.flushed.saturating_sub(times.contained);
    writeln!(out, "  tracked flows dropped         {:>6.2} s later", later.as_secs_f64())?;
    writeln!(out, "  calls                         {:>6}", times.calls)?;
    writeln!(out, "  longest chain of dependent calls: {}", times.chain.len())?;
    for call in &times.chain {
        let ended = call.ended.unwrap_or_default().as_millis();
        let what = format!("{} {}", call.operation, call.resource);
        writeln!(out, "    {ended:>5} ms  {what:<88}  {}", reason(call))?;
    }
    Ok(())
}

/// The most memory that this process had, in MiB (`VmHWM`, proc_pid_status(5)).
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    let paused =
        || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    writeln!(out, "at {} ms a call:", LATENCY.as_millis())?;
    for (name, world) in [
        ("one interface", World::plain()),
        ("four interfaces, Auto Scaling group, load balancers", World::interfaces(4)),
        ("two interfaces with public addresses, which settle for 3 s", World::full()),
    ] {
        let times = paused()?.block_on(measure::one(world, LATENCY));
        print(&mut out, name, &times)?;
    }
    let (took, calls) = paused()?.block_on(measure::fleet(200, 50, LATENCY));
    writeln!(out, "200 instances, 50 at a time     {:>6.2} s, {calls} calls", took.as_secs_f64())?;
    if let Some(peak) = peak() {
        writeln!(
            out,
            "peak memory                     {peak:>6} MiB, the cloud in memory and its log of calls included"
        )?;
    }
    Ok(())
}
