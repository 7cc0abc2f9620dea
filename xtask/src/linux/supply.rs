//! What a bare machine lacks: packages, the kernel's source, bindgen. Each is fetched once.

use super::work::{dir, step};
use crate::packages;
use crate::run::{cargo, quiet, run};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What building and booting a kernel takes, beyond gcc.
const PACKAGES: [&str; 22] = [
    "bc",
    "bison",
    "clang-14",
    "diffutils",
    "flex",
    "gcc",
    "grep",
    "kmod",
    "libclang-14-dev",
    "libelf-dev",
    "libssl-dev",
    "lld-14",
    "llvm-14",
    "make",
    "mawk",
    "patch",
    "procps",
    "python3",
    "qemu-system-x86",
    "sed",
    "util-linux",
    "xz-utils",
];
const SOURCE: &str = "linux-source-6.12";
/// Where the source package is, should the machine's own suites lack it.
const OTHER_SUITE: &str = "bookworm-backports";
const BINDGEN: &str = "0.71.1";

/// Installs the packages that are missing.
pub(super) fn packages() -> Result<()> {
    packages::install(&PACKAGES, &dir("apt.log")?)
}

/// The unpacked, unmodified source of the kernel: `KLP_LINUX_SRC`, or Debian's.
pub(super) fn source() -> Result<PathBuf> {
    if let Some(own) = std::env::var_os("KLP_LINUX_SRC") {
        let own = std::path::absolute(own)?;
        if !own.join("kernel/livepatch/core.c").exists() {
            bail!(
                "KLP_LINUX_SRC: {} is no source of a kernel with livepatch",
                own.display()
            );
        }
        return Ok(own);
    }
    let source = dir("src")?;
    if source.exists() {
        return Ok(source);
    }
    let packed = dir("source-package")?;
    std::fs::create_dir_all(&packed)?;
    step(&format!("download {SOURCE}"), || {
        let from_the_machines = || download(Command::new("apt-get"), &packed);
        from_the_machines()
            // The package lists may be missing or old.
            .or_else(|_| {
                run(Command::new("apt-get").args(["update", "-qq"]))
                    .and_then(|()| from_the_machines())
            })
            .or_else(|_| download(apt_of_other_suite(&packed)?, &packed))
    })?;
    step(&format!("unpack {SOURCE}"), || {
        run(Command::new("sh")
            .current_dir(&packed)
            .args(["-c", "dpkg -x linux-source-*.deb ."]))?;
        let mut unpack = Command::new("tar");
        let partial = dir("src.partial")?;
        std::fs::create_dir_all(&partial)?;
        unpack
            .arg("-xf")
            .arg(packed.join(format!("usr/src/{SOURCE}.tar.xz")))
            .arg("-C")
            .arg(&partial);
        run(unpack.arg("--strip-components=1"))?;
        std::fs::rename(partial, &source)?;
        Ok(std::fs::remove_dir_all(packed)?)
    })?;
    Ok(source)
}

fn download(mut apt: Command, into: &Path) -> Result<()> {
    run(apt.args(["download", "-qq", SOURCE]).current_dir(into))
}

/// An apt-get with package lists of its own, of a suite beside the machine's: nothing of the
/// machine's settings changes.
fn apt_of_other_suite(scratch: &Path) -> Result<Command> {
    let mirror = machines_mirror()?;
    std::fs::create_dir_all(scratch.join("lists/partial"))?;
    std::fs::create_dir_all(scratch.join("cache/archives/partial"))?;
    let list = scratch.join("sources.list");
    let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
    std::fs::write(
        &list,
        format!("deb [signed-by={key}] {mirror} {OTHER_SUITE} main\n"),
    )?;
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.arg(format!("-oDir::Etc::sourcelist={}", list.display()))
            .arg("-oDir::Etc::sourceparts=/dev/null");
        apt.arg(format!(
            "-oDir::State::lists={}",
            scratch.join("lists").display()
        ));
        apt.arg(format!("-oDir::Cache={}", scratch.join("cache").display()));
        apt
    };
    run(apt().args(["update", "-qq"]))?;
    Ok(apt())
}

/// The address from which the machine gets Debian itself.
fn machines_mirror() -> Result<String> {
    let policy = Command::new("apt-get")
        .args(["indextargets", "--format", "$(SITE) $(REPO_URI) $(LABEL)"])
        .output()?;
    let policy = String::from_utf8_lossy(&policy.stdout).into_owned();
    let debian = policy
        .lines()
        .filter_map(|line| line.split(' ').nth(1).filter(|_| line.ends_with(" Debian")));
    let mirror = debian
        .map(|uri| uri.trim_end_matches('/').to_owned())
        .next();
    mirror.with_context(|| {
        format!("apt knows no Debian mirror to take {SOURCE} from; set KLP_LINUX_SRC to a source")
    })
}

/// bindgen, compiled for us.
pub(super) fn bindgen() -> Result<PathBuf> {
    let root = dir("tools")?;
    let binary = root.join("bin/bindgen");
    if !binary.exists() {
        step(&format!("compile bindgen {BINDGEN}"), || {
            let mut install = cargo();
            install
                .args([
                    "install",
                    "--locked",
                    "--version",
                    BINDGEN,
                    "bindgen-cli",
                    "--root",
                ])
                .arg(&root);
            quiet(&mut install, &dir("bindgen.log")?)
        })?;
    }
    Ok(binary)
}
