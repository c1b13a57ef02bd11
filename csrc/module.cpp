// merfast._C: arguments are checked here, with what was got and expected; below are plain pointers.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "afg.h"

namespace py = pybind11;

namespace {

std::string text(const std::vector<py::ssize_t>& shape) {
    std::ostringstream out;
    out << '[';
    for (std::size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
    out << ']';
    return out.str();
}

// Pointer to a C-contiguous array of exactly this type and shape, or a ValueError that names both.
template <class T>
const T* checked(const char* name, const py::array& array, const std::vector<py::ssize_t>& expected) {
    const std::vector<py::ssize_t> shape(array.shape(), array.shape() + array.ndim());
    const int usable = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    const bool contiguous = (array.flags() & usable) == usable;
    if (shape == expected && contiguous && py::isinstance<py::array_t<T>>(array)) {
        return static_cast<const T*>(array.data());
    }
    std::ostringstream message;
    message << "afg " << name << ": got " << (contiguous ? "" : "non-contiguous or unaligned ")
            << std::string(py::str(array.dtype())) << ' ' << text(shape) << ", expected "
            << std::string(py::str(py::dtype::of<T>())) << ' ' << text(expected);
    throw py::value_error(message.str());
}

py::ssize_t extent(const char* name, const py::array& array, py::ssize_t ndim, py::ssize_t axis) {
    if (array.ndim() == ndim) return array.shape(axis);
    throw py::value_error("afg " + std::string(name) + ": got " + std::to_string(array.ndim()) +
                          " dimensions, expected " + std::to_string(ndim));
}

class AfgKernel {
  public:
    AfgKernel(const py::array& weight, const py::array& bias, const py::array& score, const py::array& absent,
              const std::optional<py::array>& guide_weight, const std::string& isa)
        : afg_(make(weight, bias, score, absent, guide_weight, isa)) {}

    void run(const py::array& x, const py::array& offsets, const std::optional<py::array>& guide, py::array& out,
             int threads) const {
        const merfast::Afg::Shape& shape = afg_->shape();
        const py::ssize_t rows = extent("x", x, 2, 0);
        const py::ssize_t sets = extent("offsets", offsets, 1, 0) - 1;
        if (sets < 0) throw py::value_error("afg offsets: got int64 [0], expected int64 [B + 1]");
        const float* p_x = checked<float>("x", x, {rows, shape.dim});
        // A copy: another thread may write to the array once the GIL is released, after these were checked.
        const int64_t* p_first = checked<int64_t>("offsets", offsets, {sets + 1});
        const std::vector<int64_t> bounds(p_first, p_first + sets + 1);
        const int64_t* p_offsets = bounds.data();
        if (guide.has_value() != (shape.guide_dim > 0)) {
            throw py::value_error(std::string("afg guide: got guide=") + (guide ? "True" : "False") +
                                  " with guide_weight=" + (guide ? "False" : "True") + ", expected both or neither");
        }
        const float* p_guide = guide ? checked<float>("guide", *guide, {sets, shape.guide_dim}) : nullptr;
        checked<float>("out", out, {sets, shape.dim});
        if (!out.writeable()) throw py::value_error("afg out: got a read-only array, expected a writeable one");
        float* p_out = static_cast<float*>(out.mutable_data());
        if (threads < 1) throw py::value_error("afg threads: got " + std::to_string(threads) + ", expected at least 1");
        bool rising = p_offsets[0] == 0 && p_offsets[sets] == rows;
        for (py::ssize_t b = 0; b < sets; ++b) rising = rising && p_offsets[b] <= p_offsets[b + 1];
        if (!rising) {
            throw py::value_error("afg offsets: got " + std::to_string(p_offsets[0]) + " ... " +
                                  std::to_string(p_offsets[sets]) + ", expected to rise from 0 to " +
                                  std::to_string(rows));
        }
        const py::gil_scoped_release release;
        afg_->run(p_x, p_offsets, sets, p_guide, p_out, threads);
    }

    std::string isa() const { return afg_->isa(); }

  private:
    static std::unique_ptr<merfast::Afg> make(const py::array& weight, const py::array& bias, const py::array& score,
                                              const py::array& absent, const std::optional<py::array>& guide_weight,
                                              const std::string& isa) {
        merfast::Afg::Shape shape{};
        shape.width = extent("weight", weight, 2, 0);
        shape.dim = extent("weight", weight, 2, 1);
        shape.heads = extent("score", score, 2, 0);
        if (guide_weight) shape.guide_dim = extent("guide_weight", *guide_weight, 2, 1);
        if (shape.width < 1 || shape.dim < 1 || shape.heads < 1 || (guide_weight && shape.guide_dim < 1)) {
            throw py::value_error("afg weights: got an empty dimension, expected at least 1 everywhere");
        }
        if (shape.dim % shape.heads) {
            throw py::value_error("afg weights: got width " + std::to_string(shape.dim) + " and " +
                                  std::to_string(shape.heads) + " heads, expected a multiple");
        }
        const float* p_weight = checked<float>("weight", weight, {shape.width, shape.dim});
        const float* p_bias = checked<float>("bias", bias, {shape.width});
        const float* p_score = checked<float>("score", score, {shape.heads, shape.width});
        const float* p_absent = checked<float>("absent", absent, {shape.dim});
        const float* p_guide =
            guide_weight ? checked<float>("guide_weight", *guide_weight, {shape.width, shape.guide_dim}) : nullptr;
        return std::make_unique<merfast::Afg>(shape, p_weight, p_bias, p_score, p_absent, p_guide, isa);
    }

    std::unique_ptr<merfast::Afg> afg_;
};

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU kernels of merfast on numpy arrays; merfast.ops has the tensors and the documentation.";
    m.def("isas", &merfast::afg_isas, "Instruction sets this machine can run, best first.");
    py::class_<AfgKernel>(m, "AfgKernel")
        .def(py::init<const py::array&, const py::array&, const py::array&, const py::array&,
                      const std::optional<py::array>&, const std::string&>(),
             py::arg("weight"), py::arg("bias"), py::arg("score"), py::arg("absent"), py::arg("guide_weight"),
             py::arg("isa"))
        .def("run", &AfgKernel::run, py::arg("x"), py::arg("offsets"), py::arg("guide"), py::arg("out"),
             py::arg("threads"))
        .def_property_readonly("isa", &AfgKernel::isa);
}
