/* Lets a User-Mode-Linux kernel run on a CPU whose register state is larger than it knows (Intel AMX: 11 KB).
 *
 * Linux refuses to set a process's extended registers unless all of them are given. Older User-Mode-Linux kernels give
 * the first 2.7 KB, which was everything once, and stop with "ptrace set fp regs failed, errno = 14". Preloaded into
 * the kernel's process, this adds the rest as it is.
 *
 *   gcc -shared -fPIC -O2 -o uml_xstate.so uml_xstate.c; LD_PRELOAD=uml_xstate.so linux.uml ...
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long (*real_ptrace)(int, pid_t, void *, void *);
static char state[65536] __attribute__((aligned(64)));  /* static: that kernel's stacks are small, and it has one CPU */

__attribute__((constructor)) static void find_real_ptrace(void) { real_ptrace = dlsym(RTLD_NEXT, "ptrace"); }

long ptrace(enum __ptrace_request request, ...) {
    va_list arguments;
    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);
    if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
        struct iovec *given = data, whole = {state, sizeof state};
        if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, address, &whole) == 0 && given->iov_len < whole.iov_len) {
            memcpy(state, given->iov_base, given->iov_len);
            return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, address, &whole);
        }
    }
    return real_ptrace(request, pid, address, data);
}
