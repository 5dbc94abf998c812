//! Judges the CloudFormation templates and the script in them by programs that others wrote.
//!
//! Starts them from an environment of its own, with nothing of this machine's settings; they ask nobody over the network and
//! write nothing but into a temporary folder.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    emulators::venv::{LINTS, environment, plain},
    template::Template,
    tools::workspace_root,
};

const CFN_LINT: &str = "import sys; from cfnlint.runner import main; sys.exit(main())";
const CHECKOV: &str = "import sys; from checkov.main import Checkov; sys.exit(Checkov().run())";

/// Makes the environment, before anything waits for it.
///
/// # Errors
/// Where a package can not be installed.
pub(crate) fn prepare() -> Result<()> {
    environment(&LINTS).map(drop)
}

/// Runs all lints on all templates, and prints what each said.
///
/// # Errors
/// With what they found.
pub(crate) fn templates() -> Result<()> {
    let folder = workspace_root().join("cloudformation");
    let python = environment(&LINTS)?;
    let scratch = tempfile::tempdir().context("create a temporary folder")?;
    let templates = templates_in(&folder)?;
    said("cfn-lint", lint(&python, CFN_LINT, scratch.path()).arg("--").args(&templates))?;
    println!("cfn-lint: {} templates, nothing found", templates.len());

    // It writes the path of a template into the values it judges, and takes 40 letters and slashes in a row for a secret key:
    // where the checkout lies must not decide.
    let judged = scratch.path().join("judged");
    fs::create_dir(&judged).context("create a folder")?;
    for template in &templates {
        let name = template.file_name().context("a template without a name")?;
        fs::copy(template, judged.join(name))
            .with_context(|| format!("copy {}", template.display()))?;
    }
    let mut checkov = lint(&python, CHECKOV, scratch.path());
    checkov.args(["--framework", "cloudformation", "--compact", "--quiet", "--skip-download"]);
    let verdict = said("checkov", checkov.arg("--directory").arg(&judged))?;
    // It says so too where it could read no template at all.
    ensure!(verdict.contains("Failed checks: 0"), "checkov said nothing of checks: {verdict}");
    ensure!(!verdict.contains("Passed checks: 0"), "checkov found nothing to check: {verdict}");
    println!("checkov: {}", verdict.lines().find(|line| line.contains("Passed")).unwrap_or("fine"));

    let script = scratch.path().join("user-data.sh");
    fs::write(&script, user_data(&folder.join("clean-room.yaml"))?).context("write the script")?;
    let mut shellcheck = plain(&python.with_file_name("shellcheck"));
    shellcheck.args(["--shell=sh", "--norc"]).arg(&script).arg(folder.join("tools/welcome"));
    said("shellcheck", &mut shellcheck)?;
    println!("shellcheck: nothing found");
    Ok(())
}

/// A lint, told by what its own script does: those in `bin` do not survive the move into the cache.
fn lint(python: &Path, script: &str, home: &Path) -> Command {
    let mut command = plain(Path::new("timeout"));
    command.args(["--kill-after=5", "300"]).arg(python).args(["-B", "-c", script]);
    command.env("HOME", home).current_dir(home);
    command
}

/// The templates of a folder, in order.
fn templates_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.with_context(|| format!("list {}", folder.display()))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    ensure!(!paths.is_empty(), "no templates in {}", folder.display());
    Ok(paths)
}

/// A lint's standard output; its findings, on standard output too, as an error.
fn said(name: &str, command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let talk = String::from_utf8_lossy(&output.stderr);
        bail!("{name}: {}\n{}\n{}", output.status, text.trim(), talk.trim());
    }
    Ok(text)
}

/// The script that a room starts with, with a letter for all that must be given.
fn user_data(template: &Path) -> Result<String> {
    let template = Template::read(template)?;
    let declared = template.document()["Parameters"].as_object().context("no parameters")?;
    let required = declared.iter().filter(|(_, what)| what["Default"].is_null());
    let given = required.map(|(name, _)| (name.clone(), "x".to_owned()));
    let rendered = template.render("x", &given.collect::<BTreeMap<_, _>>())?;
    let script = rendered.property("Room", "/UserData").as_str();
    Ok(script.context("the room has no user data")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_that_is_wrong_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("wrong.yaml");
        fs::write(&file, "Resources: {A: {Type: AWS::EC2::VPC, Properties: {Shape: round}}}\n")
            .expect("write");
        let python = environment(&LINTS).expect("an environment");
        let found = said("cfn-lint", lint(&python, CFN_LINT, folder.path()).arg("--").arg(&file));
        let found = found.expect_err("a property that no VPC has");
        assert!(format!("{found:#}").contains("Shape"), "{found:#}");
        assert!(templates_in(&folder.path().join("nothing")).is_err());
    }
}
