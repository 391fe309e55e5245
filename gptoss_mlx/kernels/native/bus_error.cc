#include "bus_error.h"

#include <fcntl.h>
#include <signal.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#ifdef __APPLE__
#include <libproc.h>
#endif

// What runs in the handler calls functions that are safe there alone, and keeps its text in static memory: the stack of
// a thread may be small.
namespace gptoss {

namespace {

struct sigaction before;
int terminal = -1;  // a descriptor of it
termios settings;   // of the terminal, when it was still as the shell had left it
bool is_drawn_on;   // whether it understands control codes

char text[8192];  // a line of /proc/self/maps, then what is written
char path[4096];

// Asked of the system: macOS gives every SIGBUS the code of a misaligned address.
bool is_readable(const void* address) {
  int ends[2];
  if (pipe(ends) != 0) return false;
  const bool answer = write(ends[1], address, 1) == 1;
  close(ends[0]);
  close(ends[1]);
  return answer;
}

// Of the file that is mapped at an address; empty where none is.
void find_path(uintptr_t address) {
#ifdef __APPLE__
  if (proc_regionfilename(getpid(), address, path, sizeof path - 1) <= 0) path[0] = 0;
#else
  static char piece[4096];
  const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  size_t length = 0;
  for (ssize_t count; maps >= 0 && (count = read(maps, piece, sizeof piece)) > 0;) {
    for (ssize_t i = 0; i < count; i++) {
      if (piece[i] != '\n') {
        if (length < sizeof text - 1) text[length++] = piece[i];
        continue;
      }
      text[length] = 0;
      length = 0;
      uintptr_t bounds[2] = {0, 0};  // in hexadecimal: FIRST-LAST ...
      const char* at = text;
      for (auto& bound : bounds) {
        for (; *at && *at != '-' && *at != ' '; at++) bound = bound * 16 + (*at <= '9' ? *at - '0' : *at - 'a' + 10);
        if (*at) at++;
      }
      if (address < bounds[0] || address >= bounds[1]) continue;
      if (const char* name = std::strchr(text, '/')) std::strncpy(path, name, sizeof path - 1);
      close(maps);
      return;
    }
  }
  if (maps >= 0) close(maps);
#endif
}

void append(const char* more) {
  size_t length = std::strlen(text);
  for (; *more && length < sizeof text - 1; more++) text[length++] = *more;
  text[length] = 0;
}

void write_text(int descriptor) {
  for (size_t done = 0, length = std::strlen(text); done < length;) {
    const ssize_t count = write(descriptor, text + done, length - done);
    if (count <= 0) return;
    done += count;
  }
}

void restore_terminal() {
  // Only the foreground may change it; others would be stopped.
  if (terminal < 0 || tcgetpgrp(terminal) != getpgrp()) return;
  tcsetattr(terminal, TCSANOW, &settings);
  const int output = isatty(STDOUT_FILENO) ? STDOUT_FILENO : STDERR_FILENO;
  if (!isatty(output)) return;
  text[0] = 0;
  // Nothing below the cursor, which is shown; no colours, no bracketed paste.
  if (is_drawn_on) append("\x1b[J\x1b[0m\x1b[?25h\x1b[?2004l");
  append("\n");
  write_text(output);
}

void handle(int number, siginfo_t* information, void*) {
  // Threads that read the same file are lost together: the first one speaks for all.
  static std::atomic_flag entered = ATOMIC_FLAG_INIT;
  while (entered.test_and_set()) pause();
  const bool is_fault = information->si_code > 0 && !is_readable(information->si_addr);
  if (is_fault) find_path(reinterpret_cast<uintptr_t>(information->si_addr));
  restore_terminal();
  if (path[0]) {
    for (char* c = path; *c; c++) {
      if (*c < ' ' || *c > '~') *c = '?';
    }
    text[0] = 0;
    append("error: ");
    append(path);
    append(
        " can no longer be read: it was cut short, or its disk is gone; `gptoss-mlx verify` on its folder tells "
        "more\n");
    write_text(STDERR_FILENO);
    if (before.sa_handler == SIG_DFL) _exit(1);
  }
  // Blocked while this runs, it comes again when this returns.
  sigaction(number, &before, nullptr);
  raise(number);
}

}  // namespace

void end_in_order_on_bus_error() {
  static bool done = false;
  if (done) return;
  done = true;
  for (int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (tcgetattr(descriptor, &settings) != 0) continue;
    terminal = descriptor;
    break;
  }
  const char* kind = std::getenv("TERM");
  is_drawn_on = kind && std::strcmp(kind, "dumb") != 0 && std::strcmp(kind, "unknown") != 0;
  struct sigaction action{};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &before);
}

}  // namespace gptoss
