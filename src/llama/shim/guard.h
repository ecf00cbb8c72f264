// What every function of the shim is wrapped in: exceptions and assertions become a status and a text.
#pragma once

#include "hearth_llama.h"

#include "json.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace hearth {

using json = common_json;

// Thrown by the abort callback, so that an assertion on the calling thread becomes an error.
struct assertion : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Depth of guarded calls on this thread: only below one of them may the abort callback throw.
inline thread_local int guard_depth = 0;

// Told why the process is about to end.
inline hearth_last_words last_words = nullptr;

inline void on_abort(const char * message) {
    if (guard_depth > 0) {
        throw assertion(message ? message : "GGML_ABORT");
    }
    // Returning lets ggml abort the process, which is right: nobody could catch. It says no more than what is said here.
    if (last_words) {
        last_words(message ? message : "GGML_ABORT");
    }
}

// While other threads may wait for this one at a barrier, an assertion must end the process (which is restarted): unwinding
// would leave them spinning there for ever, and freeing their pool would wait for them.
struct no_throw {
    const int saved = guard_depth;
    explicit no_throw(bool on) {
        if (on) {
            guard_depth = 0;
        }
    }
    ~no_throw() { guard_depth = saved; }
};

inline char * dup(const std::string & text) {
    char * copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (!copy) {
        throw std::bad_alloc();
    }
    std::memcpy(copy, text.c_str(), text.size() + 1);
    return copy;
}

inline void put_error(char ** err, const char * what) noexcept {
    if (!err) {
        return;
    }
    const size_t n = std::strlen(what);
    *err = static_cast<char *>(std::malloc(n + 1));
    if (*err) {
        std::memcpy(*err, what, n + 1);
    }
}

struct depth {
    depth() { ++guard_depth; }
    ~depth() { --guard_depth; }
};

template <class F> int32_t guard(char ** err, F && body) noexcept {
    if (err) {
        *err = nullptr;
    }
    const depth d;
    try {
        body();
        return HEARTH_OK;
    } catch (const assertion & e) {
        put_error(err, e.what());
        return HEARTH_ASSERT;
    } catch (const std::invalid_argument & e) {
        put_error(err, e.what());
        return HEARTH_INVALID;
    } catch (const common_json_error & e) {
        put_error(err, e.what());
        return HEARTH_INVALID;
    } catch (const std::exception & e) {
        put_error(err, e.what());
        return HEARTH_EXCEPTION;
    } catch (...) {
        put_error(err, "an unknown C++ exception");
        return HEARTH_EXCEPTION;
    }
}

} // namespace hearth
