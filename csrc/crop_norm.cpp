#include "crop_norm.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

namespace merfast {
namespace {

const CropNormIsa& kernels_for(Isa isa) {
#ifdef MERFAST_X86
    if (isa == Isa::avx512) return crop_norm_avx512();
    if (isa == Isa::avx2) return crop_norm_avx2();
#endif
    (void)isa;
    return crop_norm_generic();
}

int64_t round_up(int64_t value, int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

int64_t floor_of(double v) {  // std::floor is a call where the instruction set cannot round
    const auto whole = static_cast<int64_t>(v);
    return whole - (static_cast<double>(whole) > v);
}

// The filter of one axis; its memory is kept from box to box.
class Filter {
  public:
    // Of `size` samples under [begin, end), in the coordinates of a plane with `extent` samples.
    void set(double begin, double end, int64_t size, int64_t extent) {
        const double step = (end - begin) / static_cast<double>(size);
        const double reach = std::max(step, 1.0), slope = 1.0 / reach;
        const auto inside = [extent](int64_t j) { return std::clamp<int64_t>(j, 0, extent - 1); };
        first_.resize(static_cast<std::size_t>(size));
        last_.resize(static_cast<std::size_t>(size));
        low_ = extent;
        high_ = taps_ = 0;
        for (std::size_t i = 0; i < first_.size(); ++i) {
            // Samples whose centres lie within reach of the filter's, and not so far off that they weigh nothing.
            const double centre = begin + (static_cast<double>(i) + 0.5) * step - 0.5;
            first_[i] = floor_of(centre - reach) + 1;
            last_[i] = -floor_of(-centre - reach) - 1;
            const int64_t from = inside(first_[i]), to = inside(last_[i]) + 1;
            low_ = std::min(low_, from);
            high_ = std::max(high_, to);
            taps_ = std::max(taps_, to - from);
        }
        const auto taps = static_cast<std::size_t>(taps_);
        row_.resize(taps);
        weight_.resize(first_.size() * taps);
        float* out = weight_.data();
        for (std::size_t i = 0; i < first_.size(); ++i, out += taps) {
            const double centre = begin + (static_cast<double>(i) + 0.5) * step - 0.5;
            const int64_t first = std::min(inside(first_[i]), high_ - taps_);
            for (double& weight : row_) weight = 0.0;
            double total = 0.0;
            for (int64_t j = first_[i]; j <= last_[i]; ++j) {
                const double weight = std::max(0.0, 1.0 - std::abs(static_cast<double>(j) - centre) * slope);
                row_[static_cast<std::size_t>(inside(j) - first)] += weight;
                total += weight;
            }
            first_[i] = first;
            const double share = 1.0 / total;
            for (std::size_t k = 0; k < taps; ++k) out[k] = static_cast<float>(row_[k] * share);
        }
    }

    CropAxis axis() const { return {first_.data(), weight_.data(), taps_, low_, high_}; }

    // Whether the samples of each vector lie near enough to each other; if so, near() has them.
    bool pack(int64_t lanes) {
        const auto count = static_cast<int64_t>(first_.size()), whole = round_up(count, lanes);
        start_.resize(static_cast<std::size_t>(whole / lanes));
        at_.resize(static_cast<std::size_t>(whole));
        for (int64_t i = 0; i < whole; ++i) {
            const int64_t from = first_[std::min(i, count - 1)] - low_;
            if (i % lanes == 0) start_[i / lanes] = from;
            at_[i] = static_cast<int32_t>(from - start_[i / lanes]);
            if (at_[i] + taps_ > 2 * lanes) return false;
        }
        packed_.assign(static_cast<std::size_t>(whole * taps_), 0.0f);
        for (int64_t i = 0; i < count; ++i) {
            float* out = packed_.data() + i / lanes * lanes * taps_ + i % lanes;
            for (int64_t k = 0; k < taps_; ++k) out[k * lanes] = weight_[i * taps_ + k];
        }
        return true;
    }

    CropNear near() const { return {start_.data(), at_.data(), packed_.data(), taps_}; }

  private:
    std::vector<int64_t> last_;
    std::vector<double> row_;
    std::vector<int64_t> first_, start_;
    std::vector<int32_t> at_;
    std::vector<float> weight_, packed_;
    int64_t taps_ = 0, low_ = 0, high_ = 0;
};

// Where the planes of a picture are: v goes with u where they share bytes, as in NV12.
void set_planes(CropTask& task, const CropNorm::Planes& planes, int64_t frame) {
    const uint8_t* u = planes.u + frame * planes.c_frame;
    const uint8_t* v = planes.v + frame * planes.c_frame;
    task.planes[0].data = planes.y + frame * planes.y_frame;
    task.planes[1].data = u;
    task.planes[2].data = v;
    const bool shared = planes.c_column == 2 && v == u + 1;
    task.planes[1].channels = shared ? 2 : 1;
    task.count = shared ? 2 : 3;
}

void set_colours(CropTask& task, const CropNorm::Planes& planes, const CropNorm::Spec& spec) {
    const double luma = planes.full_range ? 1.0 : 255.0 / 219.0, chroma = planes.full_range ? 1.0 : 255.0 / 224.0;
    const double black = planes.full_range ? 0.0 : 16.0, green = 1.0 - planes.red - planes.blue;
    const double from_u = 2.0 * (1.0 - planes.blue) * chroma, from_v = 2.0 * (1.0 - planes.red) * chroma;
    const double u[3] = {0.0, -planes.blue * from_u / green, from_u};
    const double v[3] = {from_v, -planes.red * from_v / green, 0.0};
    for (int c = 0; c < 3; ++c) {
        task.matrix[c][0] = static_cast<float>(luma);
        task.matrix[c][1] = static_cast<float>(u[c]);
        task.matrix[c][2] = static_cast<float>(v[c]);
        task.offset[c] = static_cast<float>(-luma * black - 128.0 * (u[c] + v[c]));
        // Adding a half, a byte is the nearest integer once the fraction is cut off.
        task.gain[c] = spec.bytes ? 1.0f : 1.0f / (255.0f * spec.std[c]);
        task.bias[c] = spec.bytes ? 0.5f : -spec.mean[c] / spec.std[c];
    }
}

// Floats that crop() works in: three blocks of columns; and what a block of rows touches, twice, or its RGB. Or those
// of crop_rows(): six rows, and two lines with room for vectors that begin in a line and end behind it.
int64_t scratch_floats(CropTask& task, int64_t lanes, bool by_rows) {
    int64_t span = 0;
    for (int64_t p = 0; p < task.count; ++p) {
        const CropPlane& plane = task.planes[p];
        span = std::max(span, (plane.across.high - plane.across.low) * plane.column);
    }
    task.line = round_up(span + 2 * lanes, lanes);
    if (by_rows) return 6 * round_up(task.width, lanes) + 2 * task.line;
    return lanes * (3 * (task.width + 3) + std::max(2 * (span + 3), 3 * (task.width + 3)));
}

}  // namespace

CropNorm::CropNorm(const Spec& spec, Isa isa) : spec_(spec), isa_(kernels_for(isa)) {}

void CropNorm::run(const Planes& planes, const double* boxes, const int64_t* frame, int64_t count, void* out) const {
    const int64_t height = spec_.height, width = spec_.width, area = 3 * height * width;
    Filter luma_down, luma_across, chroma_down, chroma_across;
    CropTask task{};
    task.height = height;
    task.width = width;
    task.bytes = spec_.bytes;
    set_colours(task, planes, spec_);
    for (CropPlane& plane : task.planes) plane = {nullptr, planes.c_row, planes.c_column, 1, {}, {}, {}};
    task.planes[0].row = planes.y_row;
    task.planes[0].column = 1;
    const int64_t chroma_height = (planes.height + 1) / 2, chroma_width = (planes.width + 1) / 2;
    std::unique_ptr<float[]> scratch;
    int64_t floats = 0;
    for (int64_t n = 0; n < count; ++n, boxes += 4) {
        luma_across.set(boxes[0], boxes[2], width, planes.width);
        luma_down.set(boxes[1], boxes[3], height, planes.height);
        // Chroma is sited on every second column, between two rows.
        chroma_across.set(boxes[0] / 2 + 0.25, boxes[2] / 2 + 0.25, width, chroma_width);
        chroma_down.set(boxes[1] / 2, boxes[3] / 2, height, chroma_height);
        set_planes(task, planes, frame ? frame[n] : 0);
        task.planes[0].down = luma_down.axis();
        task.planes[0].across = luma_across.axis();
        for (int p = 1; p < 3; ++p) {
            task.planes[p].down = chroma_down.axis();
            task.planes[p].across = chroma_across.axis();
        }
        const bool by_rows = luma_across.pack(isa_.lanes) && chroma_across.pack(isa_.lanes);
        for (int p = 0; p < 3; ++p) task.planes[p].near = (p ? chroma_across : luma_across).near();
        if (const int64_t needed = scratch_floats(task, isa_.lanes, by_rows); needed > floats) {
            floats = needed;
            scratch.reset(new float[static_cast<std::size_t>(floats)]);
        }
        task.scratch = scratch.get();
        task.out = spec_.bytes ? static_cast<void*>(static_cast<uint8_t*>(out) + n * area)
                               : static_cast<void*>(static_cast<float*>(out) + n * area);
        (by_rows ? isa_.crop_rows : isa_.crop)(task);
    }
}

}  // namespace merfast
