// The end of a process whose mapped file can no longer be read: SIGBUS, in whatever thread touches it.
#pragma once

namespace gptoss {

// From now on such a process ends with its terminal as it is now, one line on standard error that names the file, and
// exit status 1. Any other SIGBUS restores the terminal, and is then what it would have been: a core dump, or whatever
// has handled it before. The first call counts.
void end_in_order_on_bus_error();

}  // namespace gptoss
