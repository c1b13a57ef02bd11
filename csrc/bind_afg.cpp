#include <memory>
#include <optional>

#include "afg.h"
#include "binding.h"
#include "isas.h"

namespace merfast {
namespace {

class AfgKernel {
  public:
    AfgKernel(const py::array& weight, const py::array& bias, const py::array& score, const py::array& absent,
              const std::optional<py::array>& guide_weight, const std::string& isa)
        : isa_(find_isa(isa)), afg_(make(weight, bias, score, absent, guide_weight, isa_)) {}

    void run(const py::array& x, const py::array& offsets, const std::optional<py::array>& guide, py::array& out,
             int threads) const {
        const Afg::Shape& shape = afg_->shape();
        const py::ssize_t rows = extent("afg x", x, 2, 0);
        const py::ssize_t sets = extent("afg offsets", offsets, 1, 0) - 1;
        if (sets < 0) throw py::value_error("afg offsets: got int64 [0], expected int64 [B + 1]");
        const float* p_x = checked<float>("afg x", x, {rows, shape.dim});
        // A copy: another thread may write to the array once the GIL is released, after these were checked.
        const int64_t* p_first = checked<int64_t>("afg offsets", offsets, {sets + 1});
        const std::vector<int64_t> bounds(p_first, p_first + sets + 1);
        const int64_t* p_offsets = bounds.data();
        if (guide.has_value() != (shape.guide_dim > 0)) {
            throw py::value_error(std::string("afg guide: got guide=") + (guide ? "True" : "False") +
                                  " with guide_weight=" + (guide ? "False" : "True") + ", expected both or neither");
        }
        const float* p_guide = guide ? checked<float>("afg guide", *guide, {sets, shape.guide_dim}) : nullptr;
        checked<float>("afg out", out, {sets, shape.dim});
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

    std::string isa() const { return isa_name(isa_); }

  private:
    static std::unique_ptr<Afg> make(const py::array& weight, const py::array& bias, const py::array& score,
                                     const py::array& absent, const std::optional<py::array>& guide_weight, Isa isa) {
        Afg::Shape shape{};
        shape.width = extent("afg weight", weight, 2, 0);
        shape.dim = extent("afg weight", weight, 2, 1);
        shape.heads = extent("afg score", score, 2, 0);
        if (guide_weight) shape.guide_dim = extent("afg guide_weight", *guide_weight, 2, 1);
        if (shape.width < 1 || shape.dim < 1 || shape.heads < 1 || (guide_weight && shape.guide_dim < 1)) {
            throw py::value_error("afg weights: got an empty dimension, expected at least 1 everywhere");
        }
        if (shape.dim % shape.heads) {
            throw py::value_error("afg weights: got width " + std::to_string(shape.dim) + " and " +
                                  std::to_string(shape.heads) + " heads, expected a multiple");
        }
        const float* p_weight = checked<float>("afg weight", weight, {shape.width, shape.dim});
        const float* p_bias = checked<float>("afg bias", bias, {shape.width});
        const float* p_score = checked<float>("afg score", score, {shape.heads, shape.width});
        const float* p_absent = checked<float>("afg absent", absent, {shape.dim});
        const float* p_guide =
            guide_weight ? checked<float>("afg guide_weight", *guide_weight, {shape.width, shape.guide_dim}) : nullptr;
        return std::make_unique<Afg>(shape, p_weight, p_bias, p_score, p_absent, p_guide, isa);
    }

    Isa isa_;
    std::unique_ptr<Afg> afg_;
};

}  // namespace

void bind_afg(py::module_& m) {
    py::class_<AfgKernel>(m, "AfgKernel")
        .def(py::init<const py::array&, const py::array&, const py::array&, const py::array&,
                      const std::optional<py::array>&, const std::string&>(),
             py::arg("weight"), py::arg("bias"), py::arg("score"), py::arg("absent"), py::arg("guide_weight"),
             py::arg("isa"))
        .def("run", &AfgKernel::run, py::arg("x"), py::arg("offsets"), py::arg("guide"), py::arg("out"),
             py::arg("threads"))
        .def_property_readonly("isa", &AfgKernel::isa);
}

}  // namespace merfast
