//! The program of the Lambda functions as Lambda takes it: a zip with one executable, the same for the same program.

use std::io::{Cursor, Read as _, Write as _};

use anyhow::{Context, Result, ensure};
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter, write::SimpleFileOptions};

/// What the operating system's runtimes start (Lambda developer guide, "Building a custom runtime").
const BOOTSTRAP: &str = "bootstrap";

/// The largest zip that is shipped, in bytes: a larger one starts slower, and Lambda's own bound is far above.
const MOST: usize = 10 << 20;

/// A program in a zip. Its time is that with which zip's years begin, so that the same program gives the same bytes.
///
/// # Errors
/// Where it is larger than what is shipped.
pub(super) fn bootstrap(program: &[u8]) -> Result<Vec<u8>> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .compression_level(Some(9))
        .last_modified_time(DateTime::default())
        .unix_permissions(0o755);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file(BOOTSTRAP, options).context("begin the zip")?;
    zip.write_all(program).context("pack the program")?;
    let packed = zip.finish().context("end the zip")?.into_inner();
    ensure!(
        packed.len() <= MOST,
        "the zip has {} bytes, and {MOST} are the most: look at what came into the program",
        packed.len()
    );
    // What the writer made is read by the reader before anybody relies on it.
    let mut archive = ZipArchive::new(Cursor::new(packed.as_slice())).context("read the zip")?;
    let mut read = Vec::new();
    archive.by_name(BOOTSTRAP).context("find the program")?.read_to_end(&mut read)?;
    ensure!(read == program, "the zip does not give the program back");
    Ok(packed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_program_is_the_same_zip_and_can_be_executed() {
        let program = b"a program".repeat(1000);
        let zip = bootstrap(&program).expect("a zip");
        assert_eq!(bootstrap(&program).expect("a zip"), zip);
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("p.zip"), &zip).expect("written");
        // As another program unpacks it.
        let code = "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); i = z.infolist(); \
                    print([(x.filename, oct(x.external_attr >> 16), x.date_time) for x in i], len(z.read('bootstrap')))";
        let mut python = crate::tools::command("python3").expect("python");
        python.args(["-c", code]).arg(folder.path().join("p.zip"));
        let said = crate::tools::run(&mut python).expect("unpacked");
        assert_eq!(
            String::from_utf8_lossy(&said).trim(),
            "[('bootstrap', '0o100755', (1980, 1, 1, 0, 0, 0))] 9000"
        );
    }

    #[test]
    fn a_program_that_does_not_shrink_below_the_bound_is_refused() {
        // Not compressible: each byte follows from the one before by a generator with a long period.
        let mut state = 1_u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        });
        let program: Vec<u8> = noise.take(MOST + 4096).collect();
        let error = bootstrap(&program).expect_err("too large");
        assert!(error.to_string().contains("are the most"), "{error}");
    }
}
