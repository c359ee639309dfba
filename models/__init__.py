"""Reference networks as ONNX, for the demo, the tests and the benchmarks.

Every module below has ``build(...) -> onnx.ModelProto``, which writes the network with seeded
random weights, and a command line (``python -m models.vgg --help``). All take `batch`, a number
or the name of a dynamic dimension, and `seed`; sizes and widths shrink for tests.

================== =============================================================================
module             network
================== =============================================================================
`models.alexnet`   AlexNet as in Caffe: grouped convs, LocalResponseNormalization
`models.vgg`       VGG-16: plain 3×3 convs, three Gemm with 90% of the parameters
`models.resnet`    ResNet-18 and ResNet-50: residual sums, BatchNormalization, 1×1 bottlenecks
`models.mobilenet` MobileNetV2: depthwise and 1×1 convs, linear bottlenecks, ReLU6
`models.unet`      U-Net: ConvTranspose, skip connections by Concat
`models.keywords`  keyword spotter: strided and dilated 1-D convs
`models.conv3d`    C3D: 3-D convs on short clips
================== =============================================================================
"""
