//! What opening a merged index costs, by the number of its entries and layers.
//!
//! `cargo bench -p hostel-fuse-overlay --bench index`: medians of 50 opens, each with one lookup,
//! of files that are in the page cache.

use std::error::Error;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::time::Instant;

use fuse_overlay::index::{MergedIndex, merge};
use fuse_overlay::pack::{LayerIndex, Limits, index_tar};

const OPENS: usize = 50;

fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "{:>9} {:>7} {:>12} {:>10} {:>12}",
        "entries", "layers", "index bytes", "merge ms", "open+look us"
    );
    for (entries, layers) in [(10, 1), (10, 127), (73_000, 3), (1_000_000, 1), (1_000_000, 127)] {
        let indexes = (0..layers)
            .map(|layer| layer_index(layer, entries / layers.min(entries)))
            .collect::<Result<Vec<_>, _>>()?;
        let begun = Instant::now();
        let merged = merge(&indexes)?;
        let merge_ms = begun.elapsed().as_millis();
        let mut file = tempfile::tempfile()?;
        merged.write_to(&mut file)?;
        file.flush()?;
        file.rewind()?;
        let mut times = Vec::new();
        for _ in 0..OPENS {
            let begun = Instant::now();
            let index = MergedIndex::open(&file)?;
            index.lookup(Path::new("/layer0/dir0/file0"))?;
            times.push(begun.elapsed().as_micros());
        }
        times.sort_unstable();
        let (bytes, median) = (file.metadata()?.len(), times[OPENS / 2]);
        println!("{entries:>9} {layers:>7} {bytes:>12} {merge_ms:>10} {median:>12}");
    }
    Ok(())
}

/// A layer of empty files, 1000 in a directory.
fn layer_index(layer: usize, files: usize) -> Result<LayerIndex, Box<dyn Error>> {
    let mut tar = tar::Builder::new(tempfile::tempfile()?);
    for file in 0..files {
        let mut header = tar::Header::new_ustar();
        header.set_path(format!("layer{layer}/dir{}/file{file}", file / 1000))?;
        header.set_mode(0o644);
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, std::io::empty())?;
    }
    let mut file: File = tar.into_inner()?;
    file.rewind()?;
    Ok(index_tar(std::io::BufReader::with_capacity(1 << 20, file), &Limits::default())?)
}
