#include <cmath>
#include <memory>

#include "binding.h"
#include "decode.h"
#include "isas.h"

namespace merfast {
namespace {

float* writeable(const char* name, py::array& array, const std::vector<py::ssize_t>& expected) {
    checked<float>(name, array, expected);
    if (!array.writeable()) throw py::value_error(std::string(name) + ": got a read-only array, expected writeable");
    return static_cast<float*>(array.mutable_data());
}

class DecodeKernel {
  public:
    DecodeKernel(const py::array& emotion_weight, const py::array& emotion_bias, const py::array& hidden_weight,
                 const py::array& hidden_bias, const py::array& valence_weight, const py::array& valence_bias,
                 const py::array& class_valence, const py::array& mix, float temperature, float limit,
                 const std::string& isa)
        : isa_(find_isa(isa)) {
        Decode::Shape shape{};
        shape.structures = extent("decode emotion_weight", emotion_weight, 3, 0);
        shape.classes = extent("decode emotion_weight", emotion_weight, 3, 1);
        shape.dim = extent("decode emotion_weight", emotion_weight, 3, 2);
        shape.hidden = extent("decode hidden_weight", hidden_weight, 3, 1);
        const auto [s, c, d, m] = shape;
        if (s < 1 || c < 1 || d < 1 || m < 1) {
            throw py::value_error("decode weights: got an empty dimension, expected at least 1 everywhere");
        }
        if (!(temperature > 0 && std::isfinite(temperature))) {
            throw py::value_error("decode temperature: got " + std::to_string(temperature) + ", expected above 0");
        }
        if (!(limit >= 0)) {
            throw py::value_error("decode limit: got " + std::to_string(limit) + ", expected at least 0");
        }
        Decode::Weights weights{};
        weights.emotion_weight = checked<float>("decode emotion_weight", emotion_weight, {s, c, d});
        weights.emotion_bias = checked<float>("decode emotion_bias", emotion_bias, {s, c});
        weights.hidden_weight = checked<float>("decode hidden_weight", hidden_weight, {s, m, d + c});
        weights.hidden_bias = checked<float>("decode hidden_bias", hidden_bias, {s, m});
        weights.valence_weight = checked<float>("decode valence_weight", valence_weight, {s, m});
        weights.valence_bias = checked<float>("decode valence_bias", valence_bias, {s});
        weights.class_valence = checked<float>("decode class_valence", class_valence, {s, c});
        weights.mix = checked<float>("decode mix", mix, {s});
        decode_ = std::make_unique<Decode>(shape, weights, temperature, limit, isa_);
    }

    void run(const py::array& z, py::array& posterior, py::array& valence) const {
        const Decode::Shape& shape = decode_->shape();
        const py::ssize_t batch = extent("decode z", z, 3, 1);
        const float* p_z = checked<float>("decode z", z, {shape.structures, batch, shape.dim});
        float* p_posterior = writeable("decode posterior", posterior, {batch, shape.classes});
        float* p_valence = writeable("decode valence", valence, {batch});
        const py::gil_scoped_release release;
        decode_->run(p_z, batch, p_posterior, p_valence);
    }

    std::string isa() const { return isa_name(isa_); }

  private:
    Isa isa_;
    std::unique_ptr<Decode> decode_;
};

}  // namespace

void bind_decode(py::module_& m) {
    py::class_<DecodeKernel>(m, "DecodeKernel")
        .def(py::init<const py::array&, const py::array&, const py::array&, const py::array&, const py::array&,
                      const py::array&, const py::array&, const py::array&, float, float, const std::string&>(),
             py::arg("emotion_weight"), py::arg("emotion_bias"), py::arg("hidden_weight"), py::arg("hidden_bias"),
             py::arg("valence_weight"), py::arg("valence_bias"), py::arg("class_valence"), py::arg("mix"),
             py::arg("temperature"), py::arg("limit"), py::arg("isa"))
        .def("run", &DecodeKernel::run, py::arg("z"), py::arg("posterior"), py::arg("valence"))
        .def_property_readonly("isa", &DecodeKernel::isa);
}

}  // namespace merfast
