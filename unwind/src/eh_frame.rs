//! From `.eh_frame` to a [`Table`].
//!
//! The format is the DWARF standard's (section 6.4, "Call Frame Information") with the changes of
//! the Linux Standard Base ("Exception Frames"); parsing is `gimli`'s, this is what the rules mean
//! on a [`Machine`].

use crate::machine::{Link, Machine};
use crate::table::{FrameRule, Place, Rule, Slots, Table, TableBuilder, TableError};
use alloc::vec::Vec;
use gimli::{
    BaseAddresses, CallFrameInstruction, CfaRule, CieOrFde, EhFrameOffset, EndianSlice,
    LittleEndian, RegisterRule, UnwindContext, UnwindContextStorage, UnwindExpression,
    UnwindSection, UnwindTableRow, Vendor,
};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::mem::try_push;

/// The `.eh_frame` section of an object that is loaded and relocated.
#[derive(Clone, Copy, Debug)]
pub struct EhFrame<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Where they stand in the running system.
    pub addr: CodeAddr,
}

/// Compiles what `section` says about `text`, the code of its object.
///
/// Broken or strange information never spoils the rest: a function whose rules cannot be expressed,
/// or that two entries claim, is [`Rule::Unknown`]; what no entry covers is [`Rule::Gap`].
///
/// # Errors
///
/// [`TableError::OutOfMemory`], or [`TableError::TooLarge`] if `text` is.
pub fn compile<M: Machine>(section: EhFrame<'_>, text: TextRange) -> Result<Table<M>, TableError> {
    let source = Source::new::<M>(section, text);
    let functions = source.functions(text)?;
    let mut builder = TableBuilder::new(text)?;
    let mut context = UnwindContext::new_in();
    let mut covered = text.start();
    for (index, function) in functions.iter().enumerate() {
        let range = function.range;
        if covered < range.start() {
            builder.push(covered, Rule::Gap)?;
        }
        let disputed = range.start() < covered
            || functions
                .get(index + 1)
                .is_some_and(|next| next.range.start() < range.end());
        if disputed || !source.compile_function(function, &mut context, &mut builder)? {
            builder.replace_from(range.start(), Rule::Unknown)?;
        }
        covered = covered.max(range.end());
    }
    if covered < text.end() {
        builder.push(covered, Rule::Gap)?;
    }
    Ok(builder.build())
}

type Bytes<'a> = EndianSlice<'a, LittleEndian>;
type Fde<'a> = gimli::FrameDescriptionEntry<Bytes<'a>>;
type Row = UnwindTableRow<usize, OnStack>;

/// Room for the evaluation of one function's rules. More than these, which no compiler emits, is
/// not understood.
struct OnStack;

impl UnwindContextStorage<usize> for OnStack {
    type Rules = [(gimli::Register, RegisterRule<usize>); 64];
    type Stack = [Row; 4];
}

/// One entry (FDE) of the section.
struct Function {
    range: TextRange,
    entry: EhFrameOffset,
}

/// The section and what its addresses are relative to.
struct Source<'a> {
    section: gimli::EhFrame<Bytes<'a>>,
    bases: BaseAddresses,
}

impl<'a> Source<'a> {
    fn new<M: Machine>(section: EhFrame<'a>, text: TextRange) -> Self {
        let mut parsed = gimli::EhFrame::new(section.bytes, LittleEndian);
        parsed.set_address_size(8);
        if M::SIGNS_RETURN_ADDRESSES {
            parsed.set_vendor(Vendor::AArch64);
        }
        let bases = BaseAddresses::default()
            .set_eh_frame(section.addr.get())
            .set_text(text.start().get());
        Self {
            section: parsed,
            bases,
        }
    }

    /// The entries that lie in `text`, sorted by address. What cannot be parsed is left out.
    fn functions(&self, text: TextRange) -> Result<Vec<Function>, TableError> {
        let mut functions = Vec::new();
        let mut entries = self.section.entries(&self.bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else {
                continue;
            };
            let entry = EhFrameOffset(partial.offset());
            let Some(fde) = self.fde(entry) else { continue };
            let Some(range) = TextRange::new(CodeAddr::new(fde.initial_address()), fde.len())
            else {
                continue;
            };
            if !range.is_empty() && text.start() <= range.start() && range.end() <= text.end() {
                try_push(&mut functions, Function { range, entry })?;
            }
        }
        functions.sort_unstable_by_key(|function| (function.range.start(), function.range.end()));
        Ok(functions)
    }

    fn fde(&self, entry: EhFrameOffset) -> Option<Fde<'a>> {
        self.section
            .fde_from_offset(&self.bases, entry, gimli::EhFrame::cie_from_offset)
            .ok()
    }

    /// Pushes the rules of one function; `false` if they are not understood.
    fn compile_function<M: Machine>(
        &self,
        function: &Function,
        context: &mut UnwindContext<usize, OnStack>,
        builder: &mut TableBuilder<M>,
    ) -> Result<bool, TableError> {
        let Some(fde) = self.fde(function.entry) else {
            return Ok(false);
        };
        if !self.begins_shortly(&fde) {
            return Ok(false);
        }
        if fde.is_signal_trampoline() {
            builder.push(
                function.range.start(),
                self.signal_rule(&fde).unwrap_or(Rule::Unknown),
            )?;
            return Ok(true);
        }
        if fde.cie().return_address_register().0 != M::RETURN_ADDRESS {
            // The rules of that column, which need not even be a register's, say where the function
            // returns to.
            return Ok(false);
        }
        let Some(undefined) = self.undefined::<M>(&fde) else {
            return Ok(false);
        };
        let Ok(mut rows) = fde.rows(&self.section, &self.bases, context) else {
            return Ok(false);
        };
        let mut next = function.range.start();
        loop {
            match rows.next_row() {
                Ok(Some(row)) => {
                    if row.start_address() != next.get()
                        || row.end_address() > function.range.end().get()
                    {
                        return Ok(false);
                    }
                    if row.start_address() < row.end_address() {
                        let rule = self.frame_rule(row, undefined);
                        builder.push(next, rule.unwrap_or(Rule::Unknown))?;
                    }
                    next = CodeAddr::new(row.end_address());
                }
                Ok(None) => return Ok(next == function.range.end()),
                Err(_) => return Ok(false),
            }
        }
    }

    /// Whether what its common entry (CIE) says, which is evaluated for each function anew, is as
    /// short as compilers have it. Otherwise the time would grow with the square of the section.
    fn begins_shortly(&self, fde: &Fde<'a>) -> bool {
        const MOST: usize = 64;
        let mut instructions = fde.cie().instructions(&self.section, &self.bases);
        (0..=MOST).any(|_| matches!(instructions.next(), Ok(None)))
    }

    /// Which registers the function says to be undefined. `gimli` does not tell them from those
    /// that it says nothing about.
    fn undefined<M: Machine>(&self, fde: &Fde<'a>) -> Option<Undefined> {
        let mut undefined = Undefined::Nothing;
        let both = [
            fde.cie().instructions(&self.section, &self.bases),
            fde.instructions(&self.section, &self.bases),
        ];
        for mut instructions in both {
            while let Some(instruction) = instructions.next().ok()? {
                match instruction {
                    CallFrameInstruction::Undefined { register }
                        if register.0 == M::RETURN_ADDRESS =>
                    {
                        undefined = Undefined::ReturnAddress;
                    }
                    CallFrameInstruction::Undefined { register } if is_known::<M>(register) => {
                        return None;
                    }
                    _ => {}
                }
            }
        }
        Some(undefined)
    }

    /// A function with augmentation `S` is understood if it finds the caller's registers where the
    /// kernel puts them for a handler's return, at all its instructions. (It may have rules for more
    /// registers than a row has room for.)
    fn signal_rule<M: Machine>(&self, fde: &Fde<'a>) -> Option<Rule<M>> {
        let column = fde.cie().return_address_register();
        let (mut cfa, mut place) = (None, None);
        let both = [
            fde.cie().instructions(&self.section, &self.bases),
            fde.instructions(&self.section, &self.bases),
        ];
        for mut instructions in both {
            while let Some(instruction) = instructions.next().ok()? {
                match instruction {
                    CallFrameInstruction::DefCfaExpression { expression } => {
                        cfa = Some(expression);
                    }
                    CallFrameInstruction::Expression {
                        register,
                        expression,
                    } => {
                        if register == column {
                            place = Some(expression);
                        }
                    }
                    // What CIEs begin with.
                    CallFrameInstruction::DefCfa { .. } | CallFrameInstruction::Offset { .. }
                        if cfa.is_none() && place.is_none() => {}
                    CallFrameInstruction::Nop => {}
                    _ => return None,
                }
            }
        }
        let (cfa, place) = (self.expression(&cfa?)?, self.expression(&place?)?);
        M::is_signal_frame(cfa, place).then_some(Rule::Signal)
    }

    fn frame_rule<M: Machine>(&self, row: &Row, undefined: Undefined) -> Option<Rule<M>> {
        let return_address = row.register(gimli::Register(M::RETURN_ADDRESS));
        if return_address == RegisterRule::Undefined && undefined == Undefined::ReturnAddress {
            return Some(Rule::End);
        }
        if let Link::BelowCfa(below) = M::LINK {
            match return_address {
                RegisterRule::Offset(offset)
                    if offset.checked_neg()? == i64::try_from(below).ok()? => {}
                _ => return None,
            }
        }
        if !matches!(
            row.register(gimli::Register(M::dwarf(M::STACK_POINTER))),
            RegisterRule::Undefined | RegisterRule::ValOffset(0)
        ) {
            return None;
        }
        let (cfa_base, cfa_in_memory, cfa_offset) = match *row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                let reg = known::<M>().find(|&reg| M::dwarf(reg) == register.0)?;
                (reg, false, offset)
            }
            CfaRule::Expression(ref cfa) => {
                let address = self.expression(cfa)?.strip_suffix(&[DW_OP_DEREF])?;
                let (reg, offset) = register_and_offset::<M>(address)?;
                (reg, true, offset)
            }
        };
        let mut saved = M::Slots::default();
        for (index, &reg) in M::SAVED.iter().enumerate() {
            let place = match row.register(gimli::Register(M::dwarf(reg))) {
                RegisterRule::Undefined | RegisterRule::SameValue => continue,
                RegisterRule::Offset(offset) => {
                    Place::BelowTop(u64::try_from(M::ABOVE_CFA.checked_sub(offset)?).ok()?)
                }
                RegisterRule::Expression(place) if cfa_in_memory => {
                    let (base, offset) = register_and_offset::<M>(self.expression(&place)?)?;
                    if base != cfa_base {
                        return None;
                    }
                    Place::BelowBase(u64::try_from(offset.checked_neg()?).ok()?)
                }
                _ => return None,
            };
            if !saved.set(index, place) {
                return None;
            }
        }
        Some(Rule::Frame(FrameRule {
            cfa_base,
            cfa_in_memory,
            cfa_offset: i32::try_from(cfa_offset).ok()?,
            saved,
        }))
    }

    fn expression(&self, expression: &UnwindExpression<usize>) -> Option<&'a [u8]> {
        Some(expression.get(&self.section).ok()?.0.slice())
    }
}

/// `DW_OP_deref` (DWARF 5, section 7.7.1).
const DW_OP_DEREF: u8 = 0x06;

/// Reads `DW_OP_breg<reg> offset` (DWARF 5, section 2.5.1.2), for a register that functions
/// preserve, and an offset of at most two bytes, which is more than any compiler's function needs.
fn register_and_offset<M: Machine>(expression: &[u8]) -> Option<(M::Reg, i64)> {
    const DW_OP_BREG0: u8 = 0x70;
    let (&op, offset) = expression.split_first()?;
    let number = u16::from(op.checked_sub(DW_OP_BREG0)?);
    let reg = *M::SAVED.iter().find(|&&reg| M::dwarf(reg) == number)?;
    // LEB128 (DWARF 5, section 7.6): seven bits a byte, the lowest first; bit 6 of the last byte is
    // the sign.
    let sign = |byte: u8| i64::from(byte & 0x3f) - i64::from(byte & 0x40);
    match *offset {
        [only @ 0..=0x7f] => Some((reg, sign(only))),
        [low @ 0x80..=0xff, high @ 0..=0x7f] => {
            Some((reg, i64::from(low & 0x7f) + 128 * sign(high)))
        }
        _ => None,
    }
}

/// Registers that a function says to be undefined.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Undefined {
    Nothing,
    /// The return address: the function is where a stack ends.
    ReturnAddress,
}

/// The registers that rules tell of.
fn known<M: Machine>() -> impl Iterator<Item = M::Reg> {
    [M::STACK_POINTER]
        .into_iter()
        .chain(M::SAVED.iter().copied())
}

fn is_known<M: Machine>(register: gimli::Register) -> bool {
    known::<M>().any(|reg| M::dwarf(reg) == register.0)
}
