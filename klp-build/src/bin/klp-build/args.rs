//! The command line, and the help that teaches it.

use crate::{inspect, sign};
use clap::{Parser, Subcommand};
use clap_complete::Shell;
use klp_core::model::VMLINUX;
use std::ffi::OsString;
use std::path::PathBuf;

const USAGE: &str = "\
klp-build [OPTIONS] -o OUTPUT ORIGINAL PATCHED
       klp-build [OPTIONS] -o OUTPUT --diff DIFF [--source FOLDER] [-- COMMAND...]
       klp-build inspect|keygen|sign|verify ...";

const TEACH: &str = "\
Examples:
  klp-build --diff fix.diff --target shop -o fix.ko -- make
                    build a copy of the sources twice, without and with the diff
  klp-build --diff fix.diff --source shop --target shop/target/release/shop -o fix.ko
                    the same as compile_commands.json says, or by cargo build --release
  klp-build before after --target shop -o fix.ko
                    object files, both by one compiler with the same flags, among them
                    -ffunction-sections -fdata-sections (builds of a diff get them)
  klp-build before after --linux build --object dummy --target dummy.ko -o fix.ko
                    a module of a Linux kernel
  klp-build inspect fix.ko
  klp-build keygen release && klp-build sign --key release.key fix.ko

What cannot be patched is refused, with the names of all that is at fault.";

/// Makes a patch object out of two builds, or of a source diff: of a program, a library, a Linux
/// kernel or a module of one.
#[derive(Parser)]
#[command(
    version,
    after_help = TEACH,
    override_usage = USAGE,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Verb>,
    /// The original's object file, or a folder that is searched for such
    #[arg(required_unless_present = "diff", conflicts_with = "diff")]
    pub(crate) original: Option<PathBuf>,
    /// The patched one's, or a folder with files at the same places
    #[arg(required_unless_present = "diff")]
    pub(crate) patched: Option<PathBuf>,
    /// Where to write the patch object
    #[arg(short, long, required = true)]
    pub(crate) output: Option<PathBuf>,
    /// A diff of the project's sources
    #[arg(long, help_heading = "Of a diff")]
    pub(crate) diff: Option<PathBuf>,
    /// The project's sources, where the command is run
    #[arg(
        long,
        default_value = ".",
        requires = "diff",
        help_heading = "Of a diff"
    )]
    pub(crate) source: PathBuf,
    /// How many folders the names in the diff have in front, as for patch(1)
    #[arg(
        short = 'p',
        long,
        default_value_t = 1,
        requires = "diff",
        help_heading = "Of a diff"
    )]
    pub(crate) strip: usize,
    /// What builds the project [default: what compile_commands.json or Cargo.toml says]
    #[arg(
        last = true,
        value_name = "COMMAND",
        requires = "diff",
        help_heading = "Of a diff"
    )]
    pub(crate) build: Vec<OsString>,
    /// The program or library that the original was linked into: no other build can be patched by
    /// mistake, and symbols of one name are told apart
    #[arg(long, help_heading = "What is patched")]
    pub(crate) target: Option<PathBuf>,
    /// The base image, or a library by its file name up to .so, with _ for . and -
    #[arg(long, default_value = VMLINUX, help_heading = "What is patched")]
    pub(crate) object: String,
    /// The folder in which a Linux kernel was built, or /lib/modules/VERSION/build: the patch becomes
    /// a module for it. The target is the vmlinux there, if it is not named
    #[arg(long, value_name = "BUILD", help_heading = "What is patched")]
    pub(crate) linux: Option<PathBuf>,
    /// A type that may have another layout than before, as you know that new code and the objects
    /// that exist agree; may be repeated
    #[arg(long, value_name = "TYPE", help_heading = "What is patched")]
    pub(crate) vouch_layout: Vec<String>,
    /// The patch's name [default: that of the output file, without an ending]
    #[arg(long, help_heading = "What the patch says of itself")]
    pub(crate) name: Option<String>,
    /// A patch that must be enabled, too; may be repeated
    #[arg(
        long,
        value_name = "PATCH",
        help_heading = "What the patch says of itself"
    )]
    pub(crate) depends: Vec<String>,
    /// What it is known by elsewhere, for instance CVE-2024-1234; may be repeated
    #[arg(long, help_heading = "What the patch says of itself")]
    pub(crate) label: Vec<String>,
    /// What it does, in a line
    #[arg(long, help_heading = "What the patch says of itself")]
    pub(crate) description: Option<String>,
    /// Who made it; may be repeated
    #[arg(long, help_heading = "What the patch says of itself")]
    pub(crate) author: Vec<String>,
}

/// What else there is to do.
#[derive(Subcommand)]
pub(crate) enum Verb {
    Inspect(inspect::Inspect),
    Keygen(sign::Keygen),
    Sign(sign::Sign),
    Verify(sign::Verify),
    /// Print what a shell needs to complete command lines of klp-build
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, or write those of all commands to a folder
    Man {
        /// The folder
        folder: Option<PathBuf>,
    },
}
