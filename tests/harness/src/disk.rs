//! Whole disks: partition images behind a GPT or an MBR, in a file.
//!
//! Touches only the file it builds. Tables are written by `sfdisk`; the partitions' bytes are
//! copied to their places, holes staying holes.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{Read, Write as _},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{images::MIB, tools::command};

/// Bytes in a sector of all disks built here.
pub const SECTOR: u64 = 512;

/// GPT type of Linux file-system data (Discoverable Partitions Specification).
pub const GPT_LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
/// GPT type of Linux swap.
pub const GPT_SWAP: &str = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F";
/// GPT type of the EFI system partition (UEFI specification, table 5-7).
pub const GPT_EFI: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";

/// A disk that was built.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The image file.
    pub path: PathBuf,
    /// Its partitions, in the order they were given.
    pub partitions: Vec<Partition>,
}

/// Where a partition lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The number that Linux gives it: from 1; logical partitions of an MBR from 5.
    pub number: u32,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub size: u64,
}

/// Builds a GPT disk of partition images: each with its type (`GPT_LINUX`…), in this order, on
/// boundaries of 1 MiB.
///
/// # Errors
/// Where an image can not be read or `sfdisk` refuses.
pub fn gpt(path: &Path, parts: &[(&Path, &str)]) -> Result<Disk> {
    let mut script = String::from("label: gpt\nlabel-id: C1EA0000-0000-4000-8000-0000000000FF\n");
    let mut partitions = Vec::new();
    let mut next = MIB;
    for (number, (image, kind)) in (1_u32..).zip(parts) {
        let size = size_of(image)?;
        partitions.push(Partition { number, offset: next, size });
        writeln!(
            script,
            "start={}, size={}, type={kind}, uuid=C1EA0000-0000-4000-8000-{number:012X}",
            next / SECTOR,
            size / SECTOR
        )?;
        next = (next + size).next_multiple_of(MIB);
    }
    // The backup table takes the last 33 sectors.
    write_disk(path, next + MIB, &script)?;
    fill(path, &partitions, parts.iter().map(|(image, _)| *image))?;
    Ok(Disk { path: path.to_owned(), partitions })
}

/// Builds an MBR disk: up to three primary partitions, then an extended one that holds the
/// logical ones. Each image comes with its type byte in hexadecimal (`83`, `82`, `c`…).
///
/// # Errors
/// Where there are too many partitions, an image can not be read or `sfdisk` refuses.
pub fn mbr(path: &Path, primary: &[(&Path, &str)], logical: &[(&Path, &str)]) -> Result<Disk> {
    ensure!(primary.len() <= 3, "at most three primary partitions fit beside the extended one");
    let mut script = String::from("label: dos\nlabel-id: 0xc1ea0000\n");
    let mut partitions = Vec::new();
    let mut next = MIB;
    let mut add = |next: &mut u64, number, image: &Path, kind: &str| -> Result<String> {
        let size = size_of(image)?;
        partitions.push(Partition { number, offset: *next, size });
        let line =
            format!("{number} : start={}, size={}, type={kind}\n", *next / SECTOR, size / SECTOR);
        *next = (*next + size).next_multiple_of(MIB);
        Ok(line)
    };
    for (number, (image, kind)) in (1..).zip(primary) {
        script += &add(&mut next, number, image, kind)?;
    }
    if !logical.is_empty() {
        let start = next;
        let mut lines = String::new();
        for (number, (image, kind)) in (5..).zip(logical) {
            // Its own boot record lies before each logical partition.
            next += MIB;
            lines += &add(&mut next, number, image, kind)?;
        }
        let (start, size) = (start / SECTOR, (next - start) / SECTOR);
        writeln!(script, "4 : start={start}, size={size}, type=5")?;
        script += &lines;
    }
    write_disk(path, next, &script)?;
    fill(path, &partitions, primary.iter().chain(logical).map(|(image, _)| *image))?;
    Ok(Disk { path: path.to_owned(), partitions })
}

/// The file's length, which must be whole sectors and not nothing.
fn size_of(image: &Path) -> Result<u64> {
    let size = fs::metadata(image).with_context(|| format!("look at {}", image.display()))?.len();
    ensure!(size > 0 && size % SECTOR == 0, "{}: {size} bytes are no sectors", image.display());
    Ok(size)
}

/// Makes the file and has `sfdisk` write the table.
fn write_disk(path: &Path, size: u64, script: &str) -> Result<()> {
    File::create(path).and_then(|f| f.set_len(size)).with_context(|| format!("create {path:?}"))?;
    let mut child = command("sfdisk")?
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start sfdisk")?;
    // Dropping the pipe's end is what tells sfdisk that the script is complete.
    child.stdin.take().context("sfdisk has no input")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output().context("wait for sfdisk")?;
    if !output.status.success() {
        bail!("sfdisk: {}: {}\n{script}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Copies the images to their partitions.
fn fill<'a>(
    path: &Path,
    partitions: &[Partition],
    images: impl Iterator<Item = &'a Path>,
) -> Result<()> {
    let disk = OpenOptions::new().write(true).open(path).context("open the disk")?;
    for (partition, image) in partitions.iter().zip(images) {
        let source = File::open(image).with_context(|| format!("open {}", image.display()))?;
        copy_sparse(source, &disk, partition.offset)
            .with_context(|| format!("copy {}", image.display()))?;
    }
    Ok(())
}

/// Copies everything to the offset but leaves out blocks of zeros.
pub(crate) fn copy_sparse(mut source: File, target: &File, mut at: u64) -> Result<()> {
    let mut block = vec![0; 64 << 10];
    loop {
        let len = source.read(&mut block)?;
        let read = block.get(..len).context("a read longer than its buffer")?;
        if read.is_empty() {
            return Ok(());
        }
        if read.iter().any(|&byte| byte != 0) {
            target.write_all_at(read, at)?;
        }
        at += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        images::{Ext, Image},
        tools::run,
    };

    fn small(folder: &Path, name: &str) -> PathBuf {
        let content = tempfile::tempdir().expect("temporary folder");
        fs::write(content.path().join(name), name).expect("write");
        Image::new(folder, name, 4 * MIB).ext(Ext::Ext2, content.path()).expect("ext2")
    }

    /// The names in the root folder of the partition, as The Sleuth Kit reads them.
    fn names(disk: &Path, partition: &Partition) -> String {
        let mut fls = command("fls").expect("fls");
        fls.arg("-o").arg((partition.offset / SECTOR).to_string()).arg(disk);
        String::from_utf8_lossy(&run(&mut fls).expect("fls")).into_owned()
    }

    #[test]
    fn gpt_disk_holds_its_partitions() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (a, b) = (small(dir.path(), "first"), small(dir.path(), "second"));
        let path = dir.path().join("disk.img");
        let disk = gpt(&path, &[(&a, GPT_LINUX), (&b, GPT_LINUX)]).expect("build");
        let offsets: Vec<_> = disk.partitions.iter().map(|p| (p.number, p.offset)).collect();
        assert_eq!(offsets, [(1, MIB), (2, 5 * MIB)]);
        let mut sgdisk = command("sgdisk").expect("sgdisk");
        let verdict = run(sgdisk.arg("-v").arg(&path)).expect("sgdisk");
        assert!(String::from_utf8_lossy(&verdict).contains("No problems found"));
        assert!(names(&path, &disk.partitions[0]).contains("first"));
        assert!(names(&path, &disk.partitions[1]).contains("second"));
    }

    #[test]
    fn mbr_disk_holds_logical_partitions() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let images = ["one", "five", "six"].map(|name| small(dir.path(), name));
        let path = dir.path().join("disk.img");
        let [one, five, six] = &images;
        let disk = mbr(&path, &[(one, "83")], &[(five, "83"), (six, "83")]).expect("build");
        let numbers: Vec<_> = disk.partitions.iter().map(|p| p.number).collect();
        assert_eq!(numbers, [1, 5, 6]);
        let dump = run(command("sfdisk").expect("sfdisk").arg("-d").arg(&path)).expect("sfdisk");
        let dump = String::from_utf8_lossy(&dump);
        for partition in &disk.partitions {
            let number = partition.number;
            let line = dump.lines().find(|l| l.contains(&format!("disk.img{number} :")));
            let line = line.unwrap_or_else(|| panic!("no partition {number} in {dump}"));
            let words: Vec<_> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
            assert!(words.contains(&(partition.offset / SECTOR).to_string().as_str()), "{line}");
        }
        assert!(names(&path, &disk.partitions[2]).contains("six"));
    }

    #[test]
    fn odd_sizes_are_refused() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let odd = dir.path().join("odd");
        fs::write(&odd, [0; 100]).expect("write");
        assert!(gpt(&dir.path().join("disk"), &[(&odd, GPT_LINUX)]).is_err());
    }
}
