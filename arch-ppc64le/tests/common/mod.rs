//! The running process as something to be unwound: tables of all its objects, registers of its
//! threads.

use core::ffi::{CStr, c_int, c_void};
use core::ops::ControlFlow;
use core::{ptr, slice};
use klp_arch_ppc64le::unwind::{EhFrame, Regs, Rule, Table, compile, walk};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::port::{Frame, FrameKind, Unreliable};
use object::{Object, ObjectSection};
use std::sync::OnceLock;

/// An object of this process.
pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) table: Table,
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

    fn push(&mut self, frame: Frame) {
        self.frames[self.len] = frame;
        self.len += 1;
    }

    /// Walks a stack of this process, as far as [`LIMIT`].
    pub(crate) fn walk(&mut self, regs: Regs) -> Result<(), Unreliable> {
        self.len = 0;
        let rule = |frame: Frame| find(frame.lookup());
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

    /// What the back chain alone tells, from a stack pointer: of each frame but the first, where
    /// its function was when it called (ELFv2 2.2.3.2).
    pub(crate) fn chain(&mut self, r1: u64) {
        self.len = 0;
        let mut frame = r1;
        while let Some(above) = read(frame).filter(|&above| above > frame) {
            let saved = read(above + 16).unwrap_or_default();
            self.push(Frame {
                pc: CodeAddr::new(saved),
                kind: FrameKind::Call,
            });
            frame = above;
            if self.len == LIMIT {
                break;
            }
        }
    }

    pub(crate) fn as_slice(&self) -> &[Frame] {
        &self.frames[..self.len]
    }

    /// Whether these frames, the innermost `apart` of them apart, are the outermost ones of `all`.
    pub(crate) fn ends(&self, apart: usize, all: &Self) -> bool {
        let callers = &self.as_slice()[apart.min(self.len)..];
        let Some(first) = all.len.checked_sub(callers.len()) else {
            return false;
        };
        let same = |(our, their): (&Frame, &Frame)| our.pc == their.pc;
        callers.iter().zip(&all.as_slice()[first..]).all(same)
    }
}

/// The registers here.
#[macro_export]
macro_rules! regs_here {
    () => {{
        let (pc, lr, r1, r30, r31): (u64, u64, u64, u64, u64);
        // SAFETY: changes nothing but what it says.
        unsafe {
            core::arch::asm!(
                "mflr {lr}",
                "bcl 20, 31, 2f",
                "2: mflr {pc}",
                "mtlr {lr}",
                "mr {r1}, %r1",
                "mr {r30}, %r30",
                "mr {r31}, %r31",
                pc = out(reg) pc,
                lr = out(reg) lr,
                r1 = out(reg) r1,
                r30 = out(reg) r30,
                r31 = out(reg) r31,
                options(nomem, nostack),
            );
        }
        klp_arch_ppc64le::unwind::Regs { pc, lr, r1, r30, r31, ..klp_arch_ppc64le::unwind::Regs::NONE }
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
    // The kernel's own object is no file; what code there is runs in no test.
    if name.starts_with("linux-vdso") {
        return 0;
    }
    let path = if name.is_empty() {
        "/proc/self/exe"
    } else {
        name
    };
    let file = std::fs::read(path).expect("the object's file");
    let file = object::File::parse(&*file).expect("an ELF file");
    let section = file
        .section_by_name(".eh_frame")
        .expect("unwind information");
    let addr = info.dlpi_addr + section.address();
    // SAFETY: the section is loaded there, and stays.
    let bytes = unsafe { slice::from_raw_parts(addr as *const u8, section.size() as usize) };
    let section = EhFrame {
        bytes,
        addr: CodeAddr::new(addr),
    };
    objects.push(Loaded {
        name: name.into(),
        table: compile(section, text).expect("a table"),
    });
    0
}
