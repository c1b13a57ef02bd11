#include <cmath>
#include <memory>

#include "binding.h"
#include "group_norm_gelu.h"
#include "isas.h"

namespace merfast {
namespace {

class GroupNormGeluKernel {
  public:
    GroupNormGeluKernel(const py::array& weight, const py::array& bias, int64_t groups, float eps,
                        const std::string& isa)
        : isa_(find_isa(isa)) {
        const py::ssize_t channels = extent("group_norm_gelu weight", weight, 1, 0);
        const float* p_weight = checked<float>("group_norm_gelu weight", weight, {channels});
        const float* p_bias = checked<float>("group_norm_gelu bias", bias, {channels});
        if (groups < 1 || channels < 1 || channels % groups) {
            throw py::value_error("group_norm_gelu groups: got " + std::to_string(groups) + ", expected a divisor of " +
                                  std::to_string(channels) + " channels");
        }
        if (!(eps >= 0 && std::isfinite(eps))) {
            throw py::value_error("group_norm_gelu eps: got " + std::to_string(eps) + ", expected a number from 0 on");
        }
        op_ = std::make_unique<GroupNormGelu>(p_weight, p_bias, channels, groups, eps, isa_);
    }

    void run(const py::array& x, const py::array& lengths, py::array& out, int threads) const {
        const py::ssize_t batch = extent("group_norm_gelu x", x, 3, 0);
        const py::ssize_t frames = extent("group_norm_gelu x", x, 3, 2);
        const float* p_x = checked<float>("group_norm_gelu x", x, {batch, op_->channels(), frames});
        // A copy: another thread may write to the array once the GIL is released, after these were checked.
        const int64_t* p_lengths = checked<int64_t>("group_norm_gelu lengths", lengths, {batch});
        const std::vector<int64_t> valid(p_lengths, p_lengths + batch);
        for (const int64_t length : valid) {
            if (length < 0 || length > frames) {
                throw py::value_error("group_norm_gelu lengths: got " + std::to_string(length) + ", expected 0 to " +
                                      std::to_string(frames));
            }
        }
        checked<float>("group_norm_gelu out", out, {batch, op_->channels(), frames});
        if (!out.writeable()) throw py::value_error("group_norm_gelu out: got a read-only array, expected writeable");
        float* p_out = static_cast<float*>(out.mutable_data());
        if (threads < 1) {
            throw py::value_error("group_norm_gelu threads: got " + std::to_string(threads) + ", expected at least 1");
        }
        const py::gil_scoped_release release;
        op_->run(p_x, valid.data(), batch, frames, p_out, threads);
    }

    std::string isa() const { return isa_name(isa_); }

  private:
    Isa isa_;
    std::unique_ptr<GroupNormGelu> op_;
};

}  // namespace

void bind_group_norm_gelu(py::module_& m) {
    py::class_<GroupNormGeluKernel>(m, "GroupNormGeluKernel")
        .def(py::init<const py::array&, const py::array&, int64_t, float, const std::string&>(), py::arg("weight"),
             py::arg("bias"), py::arg("groups"), py::arg("eps"), py::arg("isa"))
        .def("run", &GroupNormGeluKernel::run, py::arg("x"), py::arg("lengths"), py::arg("out"), py::arg("threads"))
        .def_property_readonly("isa", &GroupNormGeluKernel::isa);
}

}  // namespace merfast
