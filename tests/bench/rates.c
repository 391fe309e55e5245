/* What this machine gives at most, written without anything of gptoss-mlx: the oracle of tests/bench/test_rates.py.
 *
 *     cc -O3 -march=native -pthread rates.c -o rates && ./rates THREADS
 *
 * prints bytes read per second, and operations per second of byte products and of FP32, of which a multiplication and an
 * addition are two; 0 for what it has no instructions for. Each is the best of some rounds. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { rounds = 16, most_threads = 256 };
static const size_t memory_size = (size_t)512 << 20, block_size = 1 << 20;
static const long products = 400000; /* of twelve vectors each */

static int threads;
static char *memory;
static pthread_barrier_t barrier;
static double started[most_threads], ended[most_threads];
static volatile uint64_t sink;
static atomic_size_t taken;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

/* Whoever is done with a block takes the next one: cores of one machine are not always equally fast. */
static void read_blocks(int thread) {
  uint64_t sums[8] = {0};
  (void)thread;
  for (size_t at; (at = atomic_fetch_add(&taken, block_size)) < memory_size;) {
    const uint64_t *p = (const uint64_t *)(memory + at);
    for (size_t i = 0; i < block_size / 8; i += 8)
      for (int j = 0; j < 8; j++) sums[j] += p[i + j];
  }
  for (int j = 0; j < 8; j++) sink += sums[j];
}

/* Twelve independent sums, one instruction each: nothing else is in the loop. */
#define TWELVE(instruction)                                                                                           \
  instruction(0) instruction(1) instruction(2) instruction(3) instruction(4) instruction(5) instruction(6)            \
      instruction(7) instruction(8) instruction(9) instruction(10) instruction(11)
#define LOOP(constraint, instruction)                                                                                 \
  for (long i = 0; i < products; i++)                                                                                 \
  __asm__ volatile(TWELVE(instruction)                                                                                \
                   : constraint(s[0]), constraint(s[1]), constraint(s[2]), constraint(s[3]), constraint(s[4]),        \
                     constraint(s[5]), constraint(s[6]), constraint(s[7]), constraint(s[8]), constraint(s[9]),        \
                     constraint(s[10]), constraint(s[11])                                                             \
                   : OPERAND(a))

#if defined(__AVX512VNNI__)
#define INOUT "+v"
#define OPERAND "v"
#define BYTE(n) "vpdpbusd %12, %12, %" #n "\n"
#define FLOAT(n) "vfmadd231ps %12, %12, %" #n "\n"
typedef __m512i vector;
enum { bytes_a_product = 64 };
#elif defined(__AVXVNNI__)
#define INOUT "+x"
#define OPERAND "x"
#define BYTE(n) "{vex} vpdpbusd %12, %12, %" #n "\n"
#define FLOAT(n) "vfmadd231ps %12, %12, %" #n "\n"
typedef __m256i vector;
enum { bytes_a_product = 32 };
#elif defined(__ARM_FEATURE_DOTPROD)
#define INOUT "+w"
#define OPERAND "w"
#define BYTE(n) "sdot %" #n ".4s, %12.16b, %12.16b\n"
#define FLOAT(n) "fmla %" #n ".4s, %12.4s, %12.4s\n"
typedef int8x16_t vector;
enum { bytes_a_product = 16 };
#else
enum { bytes_a_product = 0 };
#endif

#if defined(INOUT)
static void multiply_bytes(int thread) {
  vector s[12], a;
  (void)thread;
  memset(&a, 0, sizeof a);
  memset(s, 0, sizeof s);
  LOOP(INOUT, BYTE);
}
static void multiply_floats(int thread) {
  vector s[12], a;
  (void)thread;
  memset(&a, 0, sizeof a);
  memset(s, 0, sizeof s);
  LOOP(INOUT, FLOAT);
}
#endif

typedef void (*work)(int thread);
struct job {
  work work;
  int thread;
  double amount, best;
};

/* The threads stay, so that the system has time to give each a core of its own. */
static void *run(void *argument) {
  struct job *job = argument;
  for (int round = 0; round < rounds; round++) {
    taken = 0;
    pthread_barrier_wait(&barrier);
    started[job->thread] = now();
    job->work(job->thread);
    ended[job->thread] = now();
    pthread_barrier_wait(&barrier);
    double first = started[0], last = ended[0];
    for (int i = 1; i < threads; i++) {
      first = started[i] < first ? started[i] : first;
      last = ended[i] > last ? ended[i] : last;
    }
    if (job->amount / (last - first) > job->best) job->best = job->amount / (last - first);
    pthread_barrier_wait(&barrier);
  }
  return NULL;
}

static double best_rate(double amount, work work) {
  pthread_t all[most_threads];
  struct job jobs[most_threads];
  for (int i = 0; i < threads; i++) {
    jobs[i] = (struct job){work, i, amount, 0};
    pthread_create(&all[i], NULL, run, &jobs[i]);
  }
  for (int i = 0; i < threads; i++) pthread_join(all[i], NULL);
  return jobs[0].best;
}

int main(int argc, char **argv) {
  threads = argc > 1 ? atoi(argv[1]) : 1;
  if (threads < 1 || threads > most_threads) return 2;
  pthread_barrier_init(&barrier, NULL, threads);
  memory = malloc(memory_size);
  if (!memory) return 1;
  memset(memory, 1, memory_size);
  double bandwidth = best_rate((double)memory_size, read_blocks), bytes = 0, floats = 0;
#if defined(INOUT)
  bytes = best_rate(2.0 * 12 * products * bytes_a_product * threads, multiply_bytes);
  floats = best_rate(2.0 * 12 * products * bytes_a_product / 4 * threads, multiply_floats);
#endif
  printf("%.0f %.0f %.0f\n", bandwidth, bytes, floats);
  return 0;
}
