// Joint decoding of all structures and their average on plain pointers; merfast/ops/decode.py is the contract.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "decode_isa.h"

namespace merfast {

// Weights of all structures, packed once; run() may be called from many threads at the same time.
class Decode {
  public:
    struct Shape {
        int64_t structures, classes, dim, hidden;  // S, C, D, M, all at least 1
    };
    // Row-major, all copied.
    struct Weights {
        const float* emotion_weight;  // [S, C, D]
        const float* emotion_bias;    // [S, C]
        const float* hidden_weight;   // [S, M, D + C]
        const float* hidden_bias;     // [S, M]
        const float* valence_weight;  // [S, M]
        const float* valence_bias;    // [S]
        const float* class_valence;   // [S, C]
        const float* mix;             // [S]
    };

    // Temperature above 0; valence is clamped to [-limit, limit].
    Decode(const Shape& shape, const Weights& weights, float temperature, float limit, Isa isa);

    // z [S, batch, D] -> posterior [batch, C], valence [batch], on the caller's thread.
    void run(const float* z, int64_t batch, float* posterior, float* valence) const;

    const Shape& shape() const { return shape_; }

  private:
    void pack(const Weights& weights, int64_t s);

    Shape shape_;
    const DecodeIsa* isa_;
    DecodePacked packed_{};
    AlignedFloats weight_, bias_, given_, out_, means_, constant_, mix_;
};

}  // namespace merfast
