// The parameters of a sampler in llama.cpp's own terms.
#pragma once

#include "hearth_llama.h"

#include "common.h"

namespace hearth {

// With the grammar and what makes it hold, by the same rules as llama-server's.
common_params_sampling sampling_params(const hearth_sampler_params * params, const llama_vocab * vocab);

} // namespace hearth
