//! A patch becomes a module of a Linux kernel, by the kernel's own build.

use crate::rebuild::run;
use crate::step::Step;
use anyhow::{Context, Result, ensure};
use klp_build::{convert, module};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Links the object file `patch` to a module called `name` of the kernel that was built in `build`,
/// and returns the bytes of the livepatch.
///
/// Variables of make's (`LLVM=1`) may be in the environment.
pub(crate) fn module(patch: &[u8], name: &str, build: &Path) -> Result<Vec<u8>> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    ensure!(
        name.bytes().all(is_plain),
        "'{name}' cannot be the name of a kernel module: it must have letters, digits and _ only"
    );
    let build = std::path::absolute(build)?;
    let folder = tempfile::tempdir().context("no room for a kernel module")?;
    let write = |file: &str, bytes: &[u8]| {
        fs::write(folder.path().join(file), bytes).with_context(|| format!("cannot write {file}"))
    };
    write("klp_init.c", module::INIT.as_bytes())?;
    write("klp_patch.o_shipped", patch)?;
    // Kbuild looks for the commands that have made an object file.
    write(".klp_patch.o.cmd", b"")?;
    let makefile = format!("obj-m := {name}.o\n{name}-y := klp_init.o klp_patch.o\n");
    write("Makefile", makefile.as_bytes())?;
    let mut make = Command::new("make");
    make.arg("-C").arg(&build);
    make.arg(format!("M={}", folder.path().display()));
    // modpost does not know livepatch symbols.
    make.args(["KBUILD_MODPOST_WARN=1", "modules"]);
    let shown = format!("make -C {} M={name} modules", build.display());
    let step = Step::new(&format!("linking a kernel module: {shown}"));
    run(&mut make, &shown)?;
    drop(step);
    let module = folder.path().join(format!("{name}.ko"));
    let module = fs::read(&module).context("the kernel's build made no module")?;
    convert(&module).context("the module cannot be made a livepatch")
}
