#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "binding.h"
#include "crop_norm.h"
#include "isas.h"

namespace merfast {
namespace {

constexpr double kFarthest = 65536.0;  // pixels; a filter's sums have as many terms as its box has rows or columns
constexpr int64_t kLargest = 16384;

[[noreturn]] void refuse(const std::string& name, const std::string& got, const std::string& expected) {
    throw py::value_error("crop_norm " + name + ": got " + got + ", expected " + expected);
}

// Bytes of a plane [F, H, W]; the strides may be any, and are the caller's to check.
const uint8_t* plane_data(const char* name, const py::array& array, const std::vector<py::ssize_t>& expected) {
    const std::vector<py::ssize_t> shape(array.shape(), array.shape() + array.ndim());
    if (py::isinstance<py::array_t<uint8_t>>(array) && shape == expected) {
        return static_cast<const uint8_t*>(array.data());
    }
    refuse(name, std::string(py::str(array.dtype())) + ' ' + text(shape), "uint8 " + text(expected));
}

class CropNormKernel {
  public:
    CropNormKernel(int64_t height, int64_t width, bool bytes, const std::array<float, 3>& mean,
                   const std::array<float, 3>& std, const std::string& isa)
        : isa_(find_isa(isa)), crop_(make(height, width, bytes, mean, std), isa_) {}

    void run(const py::array& y, const py::array& u, const py::array& v, double red, double blue, bool full_range,
             const py::array& boxes, const std::optional<py::array>& frame, py::array& out) const {
        const py::ssize_t frames = extent("crop_norm y", y, 3, 0), count = extent("crop_norm boxes", boxes, 2, 0);
        CropNorm::Planes planes{};
        planes.height = y.shape(1);
        planes.width = y.shape(2);
        if (frames < 1 || planes.height < 1 || planes.width < 1) {
            refuse("y", text({frames, planes.height, planes.width}), "at least 1 everywhere");
        }
        const std::vector<py::ssize_t> chroma{frames, (planes.height + 1) / 2, (planes.width + 1) / 2};
        planes.y = plane_data("y", y, {frames, planes.height, planes.width});
        planes.u = plane_data("u", u, chroma);
        planes.v = plane_data("v", v, chroma);
        if (y.strides(2) != 1 && planes.width > 1) {
            refuse("y", "columns " + std::to_string(y.strides(2)) + " bytes apart", "1");
        }
        planes.y_frame = y.strides(0);
        planes.y_row = y.strides(1);
        planes.c_frame = u.strides(0);
        planes.c_row = u.strides(1);
        planes.c_column = chroma[2] > 1 ? u.strides(2) : 1;  // nothing is read beyond the only column
        const std::vector<py::ssize_t> of_u(u.strides(), u.strides() + 3), of_v(v.strides(), v.strides() + 3);
        if (of_u != of_v || (planes.c_column != 1 && planes.c_column != 2)) {
            refuse("u, v", "strides " + text(of_u) + " and " + text(of_v),
                   "the same twice, with columns 1 or 2 bytes apart");
        }
        if (!(red > 0.0 && blue > 0.0 && red + blue < 1.0)) {
            refuse("matrix", std::to_string(red) + " and " + std::to_string(blue), "weights of red and blue in luma");
        }
        planes.red = red;
        planes.blue = blue;
        planes.full_range = full_range;
        // Copies: another thread may write to the arrays once the GIL is released, after these were checked.
        const double* p_boxes = checked<double>("crop_norm boxes", boxes, {count, 4});
        const std::vector<double> corners(p_boxes, p_boxes + 4 * count);
        std::vector<int64_t> index;
        if (frame) {
            const int64_t* p_frame = checked<int64_t>("crop_norm frame", *frame, {count});
            index.assign(p_frame, p_frame + count);
        }
        check_values(corners, index, frames);
        const py::ssize_t height = crop_.spec().height, width = crop_.spec().width;
        if (!out.writeable()) refuse("out", "a read-only array", "a writeable one");
        if (crop_.spec().bytes) {
            checked<uint8_t>("crop_norm out", out, {count, height, width, 3});
        } else {
            checked<float>("crop_norm out", out, {count, 3, height, width});
        }
        void* p_out = out.mutable_data();
        const py::gil_scoped_release release;
        crop_.run(planes, corners.data(), frame ? index.data() : nullptr, count, p_out);
    }

    std::string isa() const { return isa_name(isa_); }

  private:
    static CropNorm::Spec make(int64_t height, int64_t width, bool bytes, const std::array<float, 3>& mean,
                               const std::array<float, 3>& std) {
        if (std::min(height, width) < 1 || std::max(height, width) > kLargest) {
            refuse("size", text({height, width}), "1 to " + std::to_string(kLargest));
        }
        CropNorm::Spec spec{height, width, bytes, {}, {}};
        for (std::size_t c = 0; c < 3; ++c) {
            if (!std::isfinite(mean[c]) || !std::isfinite(std[c]) || !(std[c] > 0.0f)) {
                refuse("mean, std", std::to_string(mean[c]) + " and " + std::to_string(std[c]),
                       "finite numbers, std above 0");
            }
            spec.mean[c] = mean[c];
            spec.std[c] = std[c];
        }
        return spec;
    }

    static void check_values(const std::vector<double>& corners, const std::vector<int64_t>& index, int64_t frames) {
        for (std::size_t i = 0; i < corners.size(); i += 4) {
            const double* box = corners.data() + i;
            bool good = box[2] > box[0] && box[3] > box[1];
            for (int k = 0; k < 4; ++k) good = good && box[k] >= -kFarthest && box[k] <= kFarthest;  // not NaN either
            if (good) continue;
            std::ostringstream got;
            got << '[' << box[0] << ", " << box[1] << ", " << box[2] << ", " << box[3] << "] in row " << i / 4;
            refuse("boxes", got.str(), "left < right and top < bottom, within 65536 pixels of the corner");
        }
        for (const int64_t f : index) {
            if (f < 0 || f >= frames) refuse("frame", std::to_string(f), "0 to " + std::to_string(frames - 1));
        }
    }

    Isa isa_;
    CropNorm crop_;
};

}  // namespace

void bind_crop_norm(py::module_& m) {
    py::class_<CropNormKernel>(m, "CropNormKernel")
        .def(py::init<int64_t, int64_t, bool, const std::array<float, 3>&, const std::array<float, 3>&,
                      const std::string&>(),
             py::arg("height"), py::arg("width"), py::arg("whole"), py::arg("mean"), py::arg("std"), py::arg("isa"))
        .def("run", &CropNormKernel::run, py::arg("y"), py::arg("u"), py::arg("v"), py::arg("red"), py::arg("blue"),
             py::arg("full_range"), py::arg("boxes"), py::arg("frame"), py::arg("out"))
        .def_property_readonly("isa", &CropNormKernel::isa);
}

}  // namespace merfast
