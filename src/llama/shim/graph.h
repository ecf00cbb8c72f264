// What is changed in llama.cpp's graphs before and while they are computed. Both are ggml_backend_sched_eval_callbacks; `kernels` is
// a hearth_kernels, or NULL.
#pragma once

#include "hearth_llama.h"

namespace hearth {

// Nodes that kernels are for are computed by them.
bool change_nodes(ggml_tensor * t, bool ask, void * kernels);
// The same, and keys and values that no cache keeps are rounded to F16.
bool change_and_round(ggml_tensor * t, bool ask, void * kernels);

} // namespace hearth
