// What is changed in llama.cpp's graphs before and while they are computed. Both are ggml_backend_sched_eval_callbacks; `products` is
// a hearth_products, or NULL.
#pragma once

#include "hearth_llama.h"

namespace hearth {

// Products with matrices of weights are computed by them.
bool change_products(ggml_tensor * t, bool ask, void * products);
// The same, and keys and values that no cache keeps are rounded to F16.
bool change_and_round(ggml_tensor * t, bool ask, void * products);

} // namespace hearth
