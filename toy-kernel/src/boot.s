// From QEMU's `-kernel` to `start`, on every processor; and the way in and out of every interrupt.

    .section .note.pvh, "a", @note  // x86/HVM direct boot: where to enter, in 32-bit mode
    .balign 4
    .long 4, 8, 18                  // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

    .section .data.boot, "aw"
    .balign 4096                    // the first 4 GiB at their own addresses, in pages of 1 GiB
pml4:
    .quad pdpt + 3
    .zero 4088
pdpt:
    .quad 0x83, 0x40000083, 0x80000083, 0xc0000083
    .zero 4064
gdt:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff, 0x00af9a000000ffff

    .section .text.boot, "ax"
    .globl trampoline, pvh_entry, task_start, vectors
    .code16
trampoline:                         // other processors begin here, in a copy at 0x8000
    cli
    lgdtl (0x8000 + gdt_pointer - trampoline)
    mov $1, %eax                    // CR0.PE
    mov %eax, %cr0
    ljmpl $8, $protected
gdt_pointer:
    .word 31
    .long gdt

    .code32
pvh_entry:                          // the first one begins here; ebx: what QEMU says
    cli
    lgdt gdt_pointer
    ljmp $8, $protected
protected:
    mov $0x10, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov $0x20, %eax                 // CR4.PAE
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx           // EFER.LME
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $0x80000011, %eax           // CR0.PG, ET, PE
    mov %eax, %cr0
    ljmp $0x18, $long

    .code64
    .type long, @function
long:
    .cfi_startproc
    .cfi_undefined rip              // stacks end here
    mov $0xfee00020, %eax           // the number of this processor: its idle task's
    mov (%rax), %eax
    shr $24, %eax
    shl $16, %eax
    lea IDLE + 0x10000(%rax), %rsp
    mov %ebx, %edi
    call start
    .cfi_endproc
    .size long, . - long

    .type task_start, @function
task_start:                         // other tasks begin here; rbx: the task's function
    .cfi_startproc
    .cfi_undefined rip              // and their stacks end here
    call *%rbx
    call task_exit
    .cfi_endproc
    .size task_start, . - task_start

    .balign 16
vectors:                            // 16 bytes for each vector
    .set vector, 0
    .rept 36
    .balign 16
    .byte 0x6a, vector              // push
    jmp 2f
    .set vector, vector + 1
    .endr
2:  push %rax; push %rcx; push %rdx; push %rbx; push %rbp; push %rsi; push %rdi; push %r8
    push %r9; push %r10; push %r11; push %r12; push %r13; push %r14; push %r15
    cld
    mov %rsp, %rdi                  // a `Frame`
    sub $8, %rsp
    call interrupt                  // takes the lock of the tasks, and says whose frame is next
    mov %rax, %rsp
    movb $0, LOCK                   // nobody is on the old stack any more: others may run it
    pop %r15; pop %r14; pop %r13; pop %r12; pop %r11; pop %r10; pop %r9; pop %r8
    pop %rdi; pop %rsi; pop %rbp; pop %rbx; pop %rdx; pop %rcx; pop %rax
    add $8, %rsp
    iretq
