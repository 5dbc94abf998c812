//! A bill of materials in CycloneDX 1.5, <https://cyclonedx.org/docs/1.5/json/>: what a program is built from. Pure.
//!
//! By cargo's own word: the packages that reach into the program, not those that only test or build it, with the checksums
//! in `Cargo.lock`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The bill of a package's program, with the digest of that program, from `cargo metadata` and `Cargo.lock`.
///
/// # Errors
/// Where the metadata lack the package, or what they should say of one.
pub(super) fn cyclonedx(
    metadata: &Value,
    lock: &str,
    package: &str,
    digest: &str,
) -> Result<Value> {
    let all = list(&metadata["packages"])?;
    let packages: BTreeMap<_, _> = all.iter().map(|one| (text(&one["id"]), one)).collect();
    let nodes = list(&metadata["resolve"]["nodes"])?;
    let nodes: BTreeMap<_, _> = nodes.iter().map(|node| (text(&node["id"]), node)).collect();
    let root = all.iter().find(|one| one["name"] == package && one["source"].is_null());
    let root = text(&root.with_context(|| format!("no package {package}"))?["id"]);

    let (mut seen, mut open) = (BTreeSet::from([root]), vec![root]);
    let mut dependencies = Vec::new();
    while let Some(id) = open.pop() {
        let node = nodes.get(id).with_context(|| format!("nothing is said of {id}"))?;
        let mut needs: Vec<_> = list(&node["deps"])?.iter().filter(|one| is_normal(one)).collect();
        needs.sort_by_key(|one| text(&one["pkg"]));
        let needs: Vec<_> = needs.iter().map(|one| text(&one["pkg"])).collect();
        open.extend(needs.iter().filter(|need| seen.insert(need)));
        let reference = |id: &str| packages.get(id).map(|one| purl(one)).context("no such package");
        let needed: Result<Vec<_>> = needs.into_iter().map(reference).collect();
        dependencies.push((reference(id)?, needed?));
    }
    dependencies.sort();

    let checksums = checksums(lock);
    let component = |id: &str| packages.get(id).map(|one| described(one, &checksums));
    let mut components: Vec<_> =
        seen.iter().filter(|id| **id != root).filter_map(|id| component(id)).collect();
    components.sort_by_key(|component| component["bom-ref"].to_string());
    let mut program = component(root).context("no such package")?;
    program["type"] = "application".into();
    program["hashes"] = json!([{ "alg": "SHA-256", "content": digest }]);
    let dependencies = dependencies.into_iter();
    let dependencies: Vec<_> =
        dependencies.map(|(of, on)| json!({ "ref": of, "dependsOn": on })).collect();
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": { "component": program },
        "components": components, "dependencies": dependencies,
    }))
}

/// Whether one of the ways in which a package is needed is an ordinary one: then it is part of the program.
fn is_normal(dependency: &Value) -> bool {
    let kinds = dependency["dep_kinds"].as_array();
    kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
}

fn described(package: &Value, checksums: &BTreeMap<(String, String), String>) -> Value {
    let (name, version) = (text(&package["name"]), text(&package["version"]));
    let mut component = json!({
        "type": "library", "bom-ref": purl(package), "name": name, "version": version,
        "purl": purl(package),
    });
    if let Some(license) = package["license"].as_str() {
        // The old way of writing "or".
        component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
    }
    if let Some(checksum) = checksums.get(&(name.to_owned(), version.to_owned())) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    component
}

/// <https://github.com/package-url/purl-spec>, type `cargo`.
fn purl(package: &Value) -> String {
    format!(
        "pkg:cargo/{}@{}",
        text(&package["name"]),
        text(&package["version"]).replace('+', "%2B")
    )
}

/// The checksums in `Cargo.lock`, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |entry: &str, name: &str| {
        let prefix = format!("{name} = \"");
        entry
            .lines()
            .find_map(|line| line.strip_prefix(&prefix)?.strip_suffix('"').map(str::to_owned))
    };
    let entries = lock.split("[[package]]").skip(1);
    let checksum = |entry: &str| {
        Some(((field(entry, "name")?, field(entry, "version")?), field(entry, "checksum")?))
    };
    entries.filter_map(checksum).collect()
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().context("cargo's metadata lack a list")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::{cargo, run, workspace_root};

    #[test]
    fn the_agent_is_made_of_what_reaches_into_it() {
        let mut metadata = cargo();
        metadata.args(["metadata", "--format-version", "1", "--locked", "--offline"]);
        metadata.args(["--filter-platform", super::super::TARGET]);
        let metadata =
            serde_json::from_slice(&run(&mut metadata).expect("metadata")).expect("JSON");
        let lock = std::fs::read_to_string(workspace_root().join("Cargo.lock")).expect("a lock");
        let digest = "0".repeat(64);
        let bill = cyclonedx(&metadata, &lock, "cleanroom-agent", &digest).expect("a bill");
        assert_eq!(
            (&bill["bomFormat"], &bill["specVersion"]),
            (&json!("CycloneDX"), &json!("1.5"))
        );
        assert_eq!(bill["metadata"]["component"]["hashes"][0]["content"], digest.as_str());

        let components = bill["components"].as_array().expect("components");
        let names: BTreeSet<_> = components.iter().map(|one| text(&one["name"])).collect();
        for inside in ["yara-x", "goblin", "cleanroom-contract"] {
            assert!(names.contains(inside), "{inside}");
        }
        for outside in ["cleanroom-harness", "cleanroom-agent", "proptest", "cleanroom-controller"]
        {
            assert!(!names.contains(outside), "{outside}");
        }
        let references: BTreeSet<_> = components.iter().map(|one| text(&one["bom-ref"])).collect();
        assert_eq!(references.len(), components.len(), "a reference is there twice");
        for component in components {
            let ours = text(&component["name"]).starts_with("cleanroom-");
            let checksum = component["hashes"][0]["content"].as_str().map(str::len);
            assert_eq!(checksum, (!ours).then_some(64), "{component}");
            assert!(component["licenses"].is_array(), "{component}");
        }
        // All that is needed is there.
        for dependency in bill["dependencies"].as_array().expect("dependencies") {
            for needed in dependency["dependsOn"].as_array().expect("a list") {
                assert!(references.contains(text(needed)), "{needed}");
            }
        }
        assert!(cyclonedx(&metadata, &lock, "nobody", &digest).is_err());
    }
}
