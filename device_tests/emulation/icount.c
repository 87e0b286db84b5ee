/* Counts the guest instructions that qemu executes, whole and between two marks, by kind.
 *
 * The guest marks the end of a region with prctl(0x4d4c4d, region): the counts since the mark
 * before are written as a line of JSON. Built with: cc -O2 -shared -fPIC -o libicount.so icount.c
 *
 * qemu's plugin interface (version 1, qemu 7.2, include/qemu/qemu-plugin.h) is declared here
 * because Debian does not package its header. Encodings: Arm ARM DDI 0487, chapter C4.1.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;

typedef void (*translate_cb)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*execute_cb)(unsigned vcpu, void *data);
typedef void (*memory_cb)(unsigned vcpu, qemu_plugin_meminfo_t, uint64_t address, void *data);
typedef void (*syscall_cb)(qemu_plugin_id_t, unsigned vcpu, int64_t number, uint64_t, uint64_t,
                           uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
typedef void (*exit_cb)(qemu_plugin_id_t, void *data);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translate_cb);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_cb);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, exit_cb, void *data);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, execute_cb, int flags, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, memory_cb, int flags, int which,
                                      void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t);

#define EXPORTED __attribute__((visibility("default")))
#define MARK 0x4d4c4d
#define SYS_PRCTL 167
#define MAX_VCPUS 256
#define READS_AND_WRITES 3

EXPORTED int qemu_plugin_version = 1;

enum kind { INSTRUCTIONS, SIMD, LOADS_STORES, DOT, MATRIX, FMLA, BYTES_READ, BYTES_WRITTEN, KINDS };

static const char *const names[KINDS] = {"instructions", "simd",       "loads_stores",
                                         "dot_products", "matrix_products", "fmla",
                                         "bytes_read",   "bytes_written"};

static uint64_t counts[MAX_VCPUS][KINDS];
static uint64_t at_mark[KINDS];
static FILE *out;

struct block {
    uint64_t n[KINDS];
};

static void on_execute(unsigned vcpu, void *data) {
    const struct block *block = data;
    for (int kind = 0; kind < KINDS; kind++) counts[vcpu % MAX_VCPUS][kind] += block->n[kind];
}

static void on_memory(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *data) {
    (void)address, (void)data;
    enum kind kind = qemu_plugin_mem_is_store(info) ? BYTES_WRITTEN : BYTES_READ;
    counts[vcpu % MAX_VCPUS][kind] += 1u << qemu_plugin_mem_size_shift(info);
}

static bool is_load_or_store(uint32_t word) { return ((word >> 25) & 5) == 4; }

static void classify(uint32_t word, struct block *block) {
    block->n[INSTRUCTIONS]++;
    block->n[LOADS_STORES] += is_load_or_store(word);
    block->n[SIMD] += ((word >> 25) & 7) == 7;
    /* SDOT, UDOT: vectors; by element. */
    block->n[DOT] += (word & 0x9f20fc00) == 0x0e009400 || (word & 0x9f00f400) == 0x0f00e000;
    /* SMMLA, UMMLA; USMMLA. */
    block->n[MATRIX] += (word & 0xdfe0fc00) == 0x4e80a400 || (word & 0xffe0fc00) == 0x4e80ac00;
    /* FMLA of 32 and 64 bits: vectors, by element; of 16 bits: the same. */
    block->n[FMLA] += (word & 0xbfa0fc00) == 0x0e20cc00 || (word & 0xbf80f400) == 0x0f801000 ||
                      (word & 0xbfe0fc00) == 0x0e400c00 || (word & 0xbfc0f400) == 0x0f001000;
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    (void)id;
    /* Never freed: qemu may execute a translation as long as the guest lives. */
    struct block *block = calloc(1, sizeof *block);
    size_t length = qemu_plugin_tb_n_insns(tb);
    for (size_t i = 0; i < length; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, i);
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
        classify(word, block);
        if (is_load_or_store(word))
            qemu_plugin_register_vcpu_mem_cb(instruction, on_memory, 0, READS_AND_WRITES, NULL);
    }
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_execute, 0, block);
}

static void write_counts(long long region) {
    fprintf(out, "{\"region\": %lld", region);
    for (int kind = 0; kind < KINDS; kind++) {
        uint64_t sum = 0;
        for (int vcpu = 0; vcpu < MAX_VCPUS; vcpu++) sum += counts[vcpu][kind];
        fprintf(out, ", \"%s\": %llu", names[kind], (unsigned long long)(sum - at_mark[kind]));
        at_mark[kind] = sum;
    }
    fprintf(out, "}\n");
    fflush(out);
}

static void on_syscall(qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2,
                       uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                       uint64_t a8) {
    (void)id, (void)vcpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == SYS_PRCTL && a1 == MARK) write_counts((long long)a2);
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
                                 char **argv) {
    (void)info;
    out = stderr;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4)) out = fopen(argv[i] + 4, "w");
    if (!out) return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    return 0;
}
