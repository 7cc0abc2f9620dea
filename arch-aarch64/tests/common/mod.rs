//! The running process as something to be unwound: tables of all its objects, registers of its
//! threads.
#![allow(dead_code, reason = "each test uses a part")]

use core::ffi::{CStr, c_int, c_void};
use core::ops::ControlFlow;
use core::{ptr, slice};
use klp_arch_aarch64::unwind::{EhFrame, Regs, Rule, SIGNAL_RETURN, Table, compile, walk};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::port::{Frame, FrameKind, Unreliable};
use object::{Object, ObjectSection};
use std::sync::OnceLock;

/// An object of this process.
pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) table: Table,
    pub(crate) eh_frame: &'static [u8],
    pub(crate) eh_frame_addr: CodeAddr,
}

/// All objects of this process that have unwind information.
pub(crate) fn objects() -> &'static [Loaded] {
    static OBJECTS: OnceLock<Vec<Loaded>> = OnceLock::new();
    OBJECTS.get_or_init(|| {
        let mut objects = Vec::new();
        // SAFETY: the callback takes the pointer as what it is, within this call.
        unsafe { libc::dl_iterate_phdr(Some(add_object), (&raw mut objects).cast()) };
        objects
    })
}

/// The rule at `pc`, whichever object it is in.
pub(crate) fn find(pc: CodeAddr) -> Rule {
    objects()
        .iter()
        .find(|object| object.table.text().contains(pc))
        .map_or(Rule::Gap, |object| object.table.find(pc))
}

/// Where the functions that `makecontext` was given return to.
fn foot() -> CodeAddr {
    static FOOT: OnceLock<CodeAddr> = OnceLock::new();
    extern "C" fn nothing() {}
    *FOOT.get_or_init(|| {
        let mut stack = [0_u64; 256];
        // SAFETY: all-zero is a valid value of this plain struct; the context is never gone to, and
        // its stack outlives it.
        unsafe {
            let mut context: libc::ucontext_t = core::mem::zeroed();
            assert_eq!(libc::getcontext(&raw mut context), 0);
            context.uc_stack.ss_sp = stack.as_mut_ptr().cast();
            context.uc_stack.ss_size = size_of_val(&stack);
            context.uc_link = ptr::null_mut();
            libc::makecontext(&raw mut context, nothing, 0);
            CodeAddr::new(context.uc_mcontext.regs[30])
        }
    })
}

/// The rule of a frame.
pub(crate) fn rule(frame: Frame) -> Rule {
    if frame.kind == FrameKind::Call && frame.pc == foot() {
        return Rule::End;
    }
    match find(frame.lookup()) {
        Rule::Gap if returns_from_signal(frame.pc) => Rule::Signal,
        rule => rule,
    }
}

/// Whether the code at `pc` is what signal handlers return to, which no table tells.
fn returns_from_signal(pc: CodeAddr) -> bool {
    // SAFETY: frames of a real stack are in code, which can be read, in words.
    pc.get() % 4 == 0 && unsafe { *(pc.get() as *const [u8; 8]) == SIGNAL_RETURN }
}

/// Reads the stack of this process.
pub(crate) fn read(addr: u64) -> Option<u64> {
    // SAFETY: addresses come from rules that hold on a real stack; a wrong one ends the test with a
    // fault.
    (addr % 8 == 0 && addr >= 4096).then(|| unsafe { ptr::read_volatile(addr as *const u64) })
}

/// Most frames that are kept.
pub(crate) const LIMIT: usize = 128;

/// Frames, as many as [`LIMIT`]. Needs no heap.
pub(crate) struct Frames {
    len: usize,
    frames: [Frame; LIMIT],
}

impl Frames {
    pub(crate) const fn new() -> Self {
        Self {
            len: 0,
            frames: [Frame {
                pc: CodeAddr::new(0),
                kind: FrameKind::Call,
            }; LIMIT],
        }
    }

    pub(crate) fn push(&mut self, frame: Frame) {
        self.frames[self.len] = frame;
        self.len += 1;
    }

    /// Walks a stack of this process, as far as [`LIMIT`].
    pub(crate) fn walk(&mut self, regs: Regs) -> Result<(), Unreliable> {
        self.len = 0;
        walk(regs, LIMIT, rule, read, &mut |frame| {
            self.push(frame);
            ControlFlow::Continue(())
        })
    }

    /// What the compiler's own unwinder sees from here, with its own frames.
    pub(crate) fn trace(&mut self) {
        self.len = 0;
        // SAFETY: the lock that is not taken protects symbolication, which is not asked for.
        unsafe {
            backtrace::trace_unsynchronized(|frame| {
                // It shows the end of a stack as a frame at address 0.
                if !frame.ip().is_null() {
                    self.push(Frame {
                        pc: CodeAddr::new(frame.ip() as u64),
                        kind: FrameKind::Call,
                    });
                }
                self.len < self.frames.len()
            });
        }
    }

    pub(crate) fn as_slice(&self) -> &[Frame] {
        &self.frames[..self.len]
    }

    /// Whether these frames, the innermost one apart, are the outermost ones of `all`.
    pub(crate) fn ends(&self, all: &Self) -> bool {
        let pcs = |frames: &Self| (frames.frames, frames.len);
        let ((ours, len), (theirs, their_len)) = (pcs(self), pcs(all));
        let callers = &ours[1..len];
        callers.len() <= their_len
            && callers
                .iter()
                .zip(&theirs[their_len - callers.len()..their_len])
                .all(|(our, their)| our.pc == their.pc)
    }
}

/// The registers here.
#[macro_export]
macro_rules! regs_here {
    () => {{
        let mut regs = [0u64; 4];
        // SAFETY: writes `regs` and nothing else.
        unsafe {
            core::arch::asm!(
                "adr x9, .",
                "mov x10, sp",
                "stp x9, x10, [x11]",
                "stp x29, x30, [x11, #16]",
                in("x11") &raw mut regs,
                out("x9") _,
                out("x10") _,
                options(nostack, preserves_flags),
            );
        }
        let [pc, sp, fp, lr] = regs;
        klp_arch_aarch64::unwind::Regs { pc, sp, fp, lr, ..klp_arch_aarch64::unwind::Regs::NONE }
    }};
}

/// Adds an object to the `Vec<Loaded>` at `objects`.
unsafe extern "C" fn add_object(
    info: *mut libc::dl_phdr_info,
    _: usize,
    objects: *mut c_void,
) -> c_int {
    // SAFETY: the pointer that `objects` gave.
    let objects = unsafe { &mut *objects.cast::<Vec<Loaded>>() };
    // SAFETY: the dynamic linker gives valid information, and no object is unloaded in these tests.
    let (info, headers, name) = unsafe {
        let info = &*info;
        (
            info,
            slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()),
            CStr::from_ptr(info.dlpi_name),
        )
    };
    let name = name.to_str().expect("a name in UTF-8");
    let code = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0);
    let start = code
        .clone()
        .map(|header| header.p_vaddr)
        .min()
        .expect("every object has code");
    let end = code
        .map(|header| header.p_vaddr + header.p_memsz)
        .max()
        .expect("every object has code");
    let text = TextRange::new(CodeAddr::new(info.dlpi_addr + start), end - start).expect("a range");

    let file = if name.starts_with("linux-vdso") {
        let len = headers
            .iter()
            .map(|header| header.p_offset + header.p_filesz)
            .max()
            .expect("it has segments");
        // SAFETY: the kernel maps the whole file, in whole pages.
        unsafe {
            slice::from_raw_parts(
                info.dlpi_addr as *const u8,
                len.next_multiple_of(4096) as usize,
            )
        }
        .to_vec()
    } else {
        std::fs::read(if name.is_empty() {
            "/proc/self/exe"
        } else {
            name
        })
        .expect("the object's file")
    };
    let file = object::File::parse(&*file).expect("an ELF file");
    // The kernel's vDSO may have none.
    let Some(section) = file.section_by_name(".eh_frame") else {
        assert!(name.starts_with("linux-vdso"), "unwind information");
        return 0;
    };
    let addr = info.dlpi_addr + section.address();
    // SAFETY: the section is loaded there, and stays.
    let bytes = unsafe { slice::from_raw_parts(addr as *const u8, section.size() as usize) };
    let eh_frame_addr = CodeAddr::new(addr);
    let table = compile(
        EhFrame {
            bytes,
            addr: eh_frame_addr,
        },
        text,
    )
    .expect("a table");
    objects.push(Loaded {
        name: name.into(),
        table,
        eh_frame: bytes,
        eh_frame_addr,
    });
    0
}
