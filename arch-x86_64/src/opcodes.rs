//! Instructions, or their first bytes, that are written and looked for.
#![forbid(unsafe_code)]

pub(crate) const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
pub(crate) const NOP: u8 = 0x90;
pub(crate) const INT3: u8 = 0xcc;
/// `jmp rel32`.
pub(crate) const JMP: u8 = 0xe9;
/// `jmp rel8`.
pub(crate) const JMP_SHORT: u8 = 0xeb;
/// `call rel32`.
pub(crate) const CALL: u8 = 0xe8;
/// `jmp *disp32(%rip)`.
pub(crate) const JMP_MEMORY: [u8; 2] = [0xff, 0x25];
/// `jmp *0(%rip)`: the target is the eight bytes behind the instruction.
pub(crate) const JMP_NEXT_QUAD: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
/// `movabs $imm64, %r11`.
pub(crate) const MOVABS_R11: [u8; 2] = [0x49, 0xbb];
