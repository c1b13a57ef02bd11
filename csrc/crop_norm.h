// Crops out of 8-bit 4:2:0 planes: resampled, converted to RGB, normalised. merfast/ops/crop_norm.py states
// what is computed.
#pragma once

#include "crop_norm_isa.h"
#include "isa.h"

namespace merfast {

class CropNorm {
  public:
    struct Spec {
        int64_t height, width;  // of crops
        bool bytes;             // uint8 [N, height, width, 3], or fp32 [N, 3, height, width]
        float mean[3];          // of R, G, B, with their values in [0, 1]; for fp32 only
        float std[3];
    };

    // F pictures; u and v have the same strides, which are in bytes.
    struct Planes {
        const uint8_t* y;
        const uint8_t* u;
        const uint8_t* v;
        int64_t height, width;
        int64_t y_frame, y_row;
        int64_t c_frame, c_row, c_column;
        double red, blue;  // weights in luma: K_r, K_b
        bool full_range;
    };

    CropNorm(const Spec& spec, Isa isa);

    const Spec& spec() const { return spec_; }

    // boxes [count, 4]: left, top, right, bottom, finite, not empty; frame [count], or null for the first throughout.
    // out: uint8_t or float, as in the spec. May be called from many threads at once.
    void run(const Planes& planes, const double* boxes, const int64_t* frame, int64_t count, void* out) const;

  private:
    Spec spec_;
    const CropNormIsa& isa_;
};

}  // namespace merfast
