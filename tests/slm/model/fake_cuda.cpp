// A CUDA device without memory or kernels: device guard and hooks, so that FakeTensors on "cuda" run forward
// and backward in a CPU build of torch. Load it before `import torch`, which looks up the hooks once.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace at {
struct CUDAHooks : CUDAHooksInterface { // torch looks this name up
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
} // namespace at

namespace {
constexpr auto CUDA = c10::DeviceType::CUDA;
struct FakeGuard : c10::impl::NoOpDeviceGuardImpl<CUDA> {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, c10::Device(CUDA, 0)); }
  c10::Device getDevice() const override { return c10::Device(CUDA, 0); }
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
};
const bool registered = [] {
  c10::impl::device_guard_impl_registry[static_cast<size_t>(CUDA)].store(new FakeGuard());
  return true;
}();
} // namespace
