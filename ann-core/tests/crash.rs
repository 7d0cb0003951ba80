//! Processes that are killed while they write: the file must hold one whole commit, none older than the last that was
//! known to be flushed.
//!
//! The test executable starts itself again as the process to be killed. `ANN_SOAK=1` kills twenty times as often.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ann_core::testing::Rng;
use ann_core::{Error, MmapStore, PageId, PageStore, Pages};

/// What tells the process that it is the child, and which file to use.
const CHILD: &str = "ANN_CRASH_TEST_FILE";

/// Starts `test` of this executable in a process of its own.
fn spawn(test: &str, path: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(CHILD, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Pages in the store after commit `n`.
fn pages(n: u64) -> u32 {
    4 + (n / 8).min(40) as u32
}

/// Whether commit `n` writes a page. New pages stay as they are for a while.
fn writes(n: u64, page: u32) -> bool {
    page < pages(n) && (page == 0 || !(n + u64::from(page)).is_multiple_of(3))
}

/// What the body of a page begins and goes on with after commit `n`: the last commit that wrote it, or 0.
fn stamp(n: u64, page: u32) -> u64 {
    (1..=n).rev().take(200).find(|&n| writes(n, page)).unwrap_or(0)
}

fn body(n: u64, page: u32, len: usize) -> Vec<u8> {
    let word = if n == 0 { 0 } else { n << 32 | u64::from(page) };
    word.to_le_bytes().into_iter().cycle().take(len).collect()
}

/// The commit that a store is in; every page must be as that commit left it.
fn commit_of(store: &MmapStore) -> u64 {
    store.verify_pages().unwrap();
    if store.page_count() == 0 {
        return 0;
    }
    let first = store.read(PageId(0)).unwrap();
    let n = u64::from_le_bytes(first[..8].try_into().unwrap()) >> 32;
    assert_eq!(store.page_count(), pages(n), "pages after commit {n}");
    for page in 0..pages(n) {
        let found = store.read(PageId(page)).unwrap();
        let wanted = body(stamp(n, page), page, found.len());
        assert!(*found == wanted, "page {page} is not as commit {n} left it");
    }
    n
}

/// The process that is killed: one commit after the other, each told when it is flushed.
#[test]
#[ignore = "started by the test that kills it"]
fn commits_until_killed() {
    let Some(path) = env::var_os(CHILD) else { return };
    let mut store = MmapStore::open_writable(Path::new(&path)).unwrap();
    for n in commit_of(&store) + 1.. {
        store.grow(pages(n)).unwrap();
        let all: Vec<_> = (0..pages(n)).filter(|&page| writes(n, page)).map(PageId).collect();
        for few in all.chunks(4) {
            let change = |change: &mut Pages<'_>| {
                for (index, page) in few.iter().enumerate() {
                    let len = change.body(index).len();
                    change.put(index, 0, &body(n, page.0, len))?;
                }
                Ok(())
            };
            store.write(few, change).unwrap();
        }
        store.flush().unwrap();
        println!("flushed {n}");
    }
}

#[test]
fn a_killed_writer_leaves_its_last_flush() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    drop(MmapStore::create(&path, 4096).unwrap());
    let soak = env::var_os("ANN_SOAK").is_some_and(|soak| soak == "1");
    let start = Instant::now();
    let (mut rng, mut last, mut ahead, mut replayed, mut rounds) = (Rng(1), 0, 0, 0, 0);
    let mut pace = Duration::ZERO;
    // On a slow disk fewer rounds must do.
    while rounds < if soak { 6000 } else { 300 } {
        if !soak && rounds >= 60 && start.elapsed() > Duration::from_secs(20) {
            break;
        }
        rounds += 1;
        let mut child = spawn("commits_until_killed", &path);
        if pace.is_zero() {
            // How long a process takes from its start to its first flush.
            let spawned = Instant::now();
            let out = BufReader::new(child.stdout.as_mut().unwrap());
            let told = out.lines().any(|line| line.unwrap().contains("flushed"));
            assert!(told, "the other process does not work");
            pace = spawned.elapsed();
        } else {
            thread::sleep(pace.mul_f64(rng.below(1000) as f64 / 400.0));
        }
        child.kill().unwrap();
        let mut out = String::new();
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        child.wait().unwrap();
        let told = out.lines().rev().find_map(|line| line.split_once("flushed ")?.1.parse().ok());
        let told: u64 = told.unwrap_or(last);
        let reader = MmapStore::open(&path).unwrap();
        let found = commit_of(&reader);
        drop(reader);
        assert!(found >= told, "round {rounds}: commit {told} was flushed, {found} was found");
        ahead += u64::from(found > told);
        replayed +=
            u64::from(folder.path().join("a.journal").metadata().is_ok_and(|m| m.len() > 0));
        // Every other time the next child is the one to recover.
        if rng.below(2) == 0 {
            let writer = MmapStore::open_writable(&path).unwrap();
            assert_eq!(commit_of(&writer), found, "round {rounds}: a writer found another commit");
        }
        // The first process may have been faster than most.
        pace = pace.mul_f64(if found > last { 0.98 } else { 1.03 });
        last = found;
    }
    println!("{rounds} kills, {last} commits, {ahead} not told of, {replayed} with a journal left");
    assert!(last > rounds / 3, "only {last} commits were made in {rounds} rounds");
    assert!(replayed > rounds / 50, "only {replayed} of {rounds} kills hit a flush");
}

/// The other process in the test of locks.
#[test]
#[ignore = "started by the test that needs a second process"]
fn holds_the_file() {
    let Some(path) = env::var_os(CHILD) else { return };
    let _store = MmapStore::open_writable(Path::new(&path)).unwrap();
    println!("\nheld");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn a_lock_holds_between_processes_and_ends_with_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    drop(MmapStore::create(&path, 4096).unwrap());
    let mut child = spawn("holds_the_file", &path);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "held"), "the other process did not open the file");
    assert!(matches!(MmapStore::open(&path), Err(Error::Locked { .. })));
    assert!(matches!(MmapStore::open_writable(&path), Err(Error::Locked { .. })));
    child.kill().unwrap();
    child.wait().unwrap();
    MmapStore::open_writable(&path).unwrap();
}
