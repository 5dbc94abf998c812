//! The disks of an instance that was broken into, each hard in a way of its own.
//!
//! Touches the folder that it is given. As root the first one has an unreplayed journal, which only mounting can leave.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

use crate::{
    damage,
    disk::{self, GPT_LINUX},
    images::{Ext, Image, MIB, XFS_MIN},
    tools::is_root,
    tree,
};

/// What both XFS disks have as their UUID, as a volume and its restored copy do.
const XFS_UUID: &str = "c1ea0000-0000-4000-8000-000000000012";

/// An instance's disk.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What is on it, for people.
    pub what: &'static str,
    /// The image.
    pub path: PathBuf,
}

/// Makes the disks, the instance's root first.
///
/// # Errors
/// Where one of the tools refuses.
pub fn disks(folder: &Path) -> Result<Vec<Evidence>> {
    let disk = |what, path| Evidence { what, path };
    let root = root(folder)?;
    let what = if is_root() {
        "GPT; ext4 that was broken into, with changes that are in its journal alone"
    } else {
        "GPT; ext4 that was broken into (its journal is clean: a dirty one takes root to make)"
    };
    let ntfs = mixed(folder)?;
    let [first, second] = ["one", "two"].map(|name| xfs(folder, name));
    Ok(vec![
        disk(what, root),
        disk("XFS", first?),
        disk("XFS with the same UUID as the other", second?),
        disk("MBR; NTFS and an LVM physical volume", ntfs),
        disk("random bytes", random(folder)?),
    ])
}

fn root(folder: &Path) -> Result<PathBuf> {
    let content = folder.join("root");
    fs::create_dir(&content)?;
    tree::planted_compromise(&content)?;
    let image = Image::new(folder, "root-clean.img", 96 * MIB)
        .uuid("c1ea0000-0000-4000-8000-000000000011")
        .label("cloudimg-rootfs")
        .ext(Ext::Ext4, &content)?;
    let mut part = image.clone();
    if is_root() {
        part = folder.join("root-dirty.img");
        damage::dirty_copy(&image, &part)?;
    }
    Ok(disk::gpt(&folder.join("disk-root.img"), &[(&part, GPT_LINUX)])?.path)
}

fn xfs(folder: &Path, name: &str) -> Result<PathBuf> {
    let content = folder.join(name);
    fs::create_dir(&content)?;
    tree::data(&content)?;
    fs::write(content.join(format!("disk-{name}.txt")), format!("this is disk {name}\n"))?;
    Image::new(folder, &format!("disk-xfs-{name}.img"), XFS_MIN)
        .uuid(XFS_UUID)
        .label("data")
        .xfs(&content)
}

/// NTFS, and a partition that begins as LVM's do: a label in its second sector (LVM2 `lib/label/label.c`).
fn mixed(folder: &Path) -> Result<PathBuf> {
    let note = folder.join("readme.txt");
    fs::write(&note, "a file on NTFS\n")?;
    let ntfs = Image::new(folder, "ntfs.img", 16 * MIB).label("shared").ntfs(&[note])?;
    let lvm = Image::new(folder, "lvm.img", 8 * MIB).zeros()?;
    let mut bytes = fs::read(&lvm)?;
    let mut label = Vec::new();
    label.extend_from_slice(b"LABELONE");
    label.extend_from_slice(&1_u64.to_le_bytes());
    // The checksum is left out: whoever recognises the label by it would have to read on.
    label.extend_from_slice(&[0; 4]);
    label.extend_from_slice(&32_u32.to_le_bytes());
    label.extend_from_slice(b"LVM2 001");
    bytes[512..512 + label.len()].copy_from_slice(&label);
    fs::write(&lvm, bytes)?;
    Ok(disk::mbr(&folder.join("disk-mbr.img"), &[(&ntfs, "7"), (&lvm, "8e")], &[])?.path)
}

/// Bytes that look like nothing, the same every time.
fn random(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("disk-random.img");
    let mut file = File::create(&path).context("create the random disk")?;
    for block in 0..16 * MIB / 32 {
        file.write_all(&Sha256::digest(block.to_le_bytes()))?;
    }
    Ok(path)
}
