//! The running process as something to be unwound: tables of all its objects.

use core::ffi::{CStr, c_int, c_void};
use core::{mem, ptr, slice};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::port::{Arch, Frame, FrameKind};
use klp_unwind::{EhFrame, Link, Machine, Rule, Table, compile};
use object::{Object, ObjectSection};
use std::sync::OnceLock;

/// A process that runs on the processor under test: what of it only that processor's crate knows.
pub trait Running: 'static {
    /// The processor.
    type Arch: Arch + Machine;

    /// The instructions that signal handlers return to, where no table has a rule for them.
    const SIGNAL_RETURN: Option<&'static [u8]> = None;

    /// On an ABI with a back chain: how many bytes above the words of the chain return addresses
    /// are saved.
    const CHAINED: Option<u64> = None;

    /// The registers here. To be `#[inline(always)]`: a walk begins in the function that asks.
    fn registers() -> Regs<Self>;

    /// The registers in the `struct ucontext` at an address, which [`read`] can read.
    fn from_ucontext(ucontext: u64) -> Option<Regs<Self>>;

    /// Where the tables of this process are kept.
    fn objects() -> &'static OnceLock<Vec<Loaded<Self::Arch>>>;
}

/// The registers that a stack is walked with.
pub type Regs<P> = <<P as Running>::Arch as Machine>::Regs;

/// An object of this process.
#[derive(Debug)]
pub struct Loaded<M: Machine> {
    pub(crate) name: String,
    pub(crate) table: Table<M>,
}

/// All objects of this process that have unwind information.
pub(crate) fn objects<P: Running>() -> &'static [Loaded<P::Arch>] {
    P::objects().get_or_init(|| {
        let mut objects: Vec<Loaded<P::Arch>> = Vec::new();
        // SAFETY: the callback takes the pointer as what it is, within this call.
        unsafe { libc::dl_iterate_phdr(Some(add_object::<P::Arch>), (&raw mut objects).cast()) };
        objects
    })
}

/// The rule at `pc`, whichever object it is in.
pub fn find<P: Running>(pc: CodeAddr) -> Rule<P::Arch> {
    objects::<P>()
        .iter()
        .find(|object| object.table.text().contains(pc))
        .map_or(Rule::Gap, |object| object.table.find(pc))
}

/// The rule of a frame.
pub(crate) fn rule<P: Running>(frame: Frame) -> Rule<P::Arch> {
    if frame.kind == FrameKind::Call && frame.pc == foot::<P>() {
        return Rule::End;
    }
    match find::<P>(frame.lookup()) {
        Rule::Gap if returns_from_signal::<P>(frame.pc) => Rule::Signal,
        rule => rule,
    }
}

/// Where the functions that `makecontext` was given return to.
fn foot<P: Running>() -> CodeAddr {
    static FOOT: OnceLock<CodeAddr> = OnceLock::new();
    extern "C" fn nothing() {}
    *FOOT.get_or_init(|| {
        let mut stack = [0_u64; 512];
        // SAFETY: all-zero is a valid value of this plain struct; the context is never gone to, and
        // its stack outlives it.
        let context = unsafe {
            let mut context: libc::ucontext_t = mem::zeroed();
            assert_eq!(libc::getcontext(&raw mut context), 0);
            context.uc_stack.ss_sp = stack.as_mut_ptr().cast();
            context.uc_stack.ss_size = size_of_val(&stack);
            context.uc_link = ptr::null_mut();
            libc::makecontext(&raw mut context, nothing, 0);
            context
        };
        let regs = P::from_ucontext((&raw const context) as u64).expect("a context");
        let register = |reg| P::Arch::get(&regs, reg);
        CodeAddr::new(match P::Arch::LINK {
            Link::BelowCfa(_) => read(register(P::Arch::STACK_POINTER)).expect("its stack"),
            Link::Register(index) => register(P::Arch::SAVED[index]),
        })
    })
}

/// Whether the code at `pc` is what signal handlers return to, which no table tells.
fn returns_from_signal<P: Running>(pc: CodeAddr) -> bool {
    // The first frame of a stack may have been called by nobody: 0.
    pc.get() != 0
        && P::SIGNAL_RETURN.is_some_and(|code| {
            // SAFETY: frames of a real stack are in code, which can be read.
            let found = unsafe { slice::from_raw_parts(pc.get() as *const u8, code.len()) };
            found == code
        })
}

/// Reads the stack of this process.
#[must_use]
pub fn read(addr: u64) -> Option<u64> {
    // SAFETY: addresses come from rules that hold on a real stack; a wrong one ends the test with a
    // fault.
    (addr % 8 == 0 && addr >= 4096).then(|| unsafe { ptr::read_volatile(addr as *const u64) })
}

/// Adds an object to the `Vec<Loaded<M>>` at `objects`.
unsafe extern "C" fn add_object<M: Machine>(
    info: *mut libc::dl_phdr_info,
    _: usize,
    objects: *mut c_void,
) -> c_int {
    // SAFETY: the pointer that `objects` gave.
    let objects = unsafe { &mut *objects.cast::<Vec<Loaded<M>>>() };
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

    let is_vdso = name.starts_with("linux-vdso");
    let file = if is_vdso {
        // The table of sections stands last ("ELF-64 Object File Format", 3: `e_shoff`,
        // `e_shentsize`, `e_shnum`).
        // SAFETY: the kernel maps the whole file.
        unsafe {
            let number = |at: usize| ((info.dlpi_addr as usize + at) as *const u16).read();
            let start = ((info.dlpi_addr + 0x28) as *const u64).read() as usize;
            let len = start + usize::from(number(0x3a)) * usize::from(number(0x3c));
            slice::from_raw_parts(info.dlpi_addr as *const u8, len)
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
    let Some(section) = file.section_by_name(".eh_frame") else {
        assert!(is_vdso, "{name} has no unwind information");
        return 0;
    };
    let addr = info.dlpi_addr + section.address();
    let section = EhFrame {
        // SAFETY: the section is loaded there, and stays.
        bytes: unsafe { slice::from_raw_parts(addr as *const u8, section.size() as usize) },
        addr: CodeAddr::new(addr),
    };
    objects.push(Loaded {
        name: name.into(),
        table: compile(section, text).expect("a table"),
    });
    0
}
