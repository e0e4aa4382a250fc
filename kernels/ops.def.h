/*
 * Every ONNX op that is accepted, one row each: X(ENUM, "OnnxName", first opset, last opset (99: any)).
 * A row needs a rule in shape*.c and a case in hapi_ref_eval(). Ops of the default domain only.
 */
#ifndef HAPI_KERNELS_OPS_DEF_H
#define HAPI_KERNELS_OPS_DEF_H

#define HAPI_ONNX_OPS(X)                                                                                     \
    X(Abs, "Abs", 1, 99)                                                                                     \
    X(Add, "Add", 1, 99)                                                                                     \
    X(And, "And", 1, 99)                                                                                     \
    X(ArgMax, "ArgMax", 1, 99)                                                                               \
    X(ArgMin, "ArgMin", 1, 99)                                                                               \
    X(AveragePool, "AveragePool", 1, 99)                                                                     \
    X(BatchNormalization, "BatchNormalization", 1, 99)                                                       \
    X(Cast, "Cast", 1, 99)                                                                                   \
    X(CastLike, "CastLike", 15, 99)                                                                          \
    X(Ceil, "Ceil", 1, 99)                                                                                   \
    X(Celu, "Celu", 12, 99)                                                                                  \
    X(Clip, "Clip", 1, 99)                                                                                   \
    X(Concat, "Concat", 1, 99)                                                                               \
    X(Constant, "Constant", 1, 99)                                                                           \
    X(ConstantOfShape, "ConstantOfShape", 9, 99)                                                             \
    X(Conv, "Conv", 1, 99)                                                                                   \
    X(ConvTranspose, "ConvTranspose", 1, 99)                                                                 \
    X(Cos, "Cos", 7, 99)                                                                                     \
    X(CumSum, "CumSum", 11, 99)                                                                              \
    X(DepthToSpace, "DepthToSpace", 1, 99)                                                                   \
    X(Div, "Div", 1, 99)                                                                                     \
    X(Dropout, "Dropout", 1, 99)                                                                             \
    X(Elu, "Elu", 1, 99)                                                                                     \
    X(Equal, "Equal", 1, 99)                                                                                 \
    X(Erf, "Erf", 9, 99)                                                                                     \
    X(Exp, "Exp", 1, 99)                                                                                     \
    X(Expand, "Expand", 8, 99)                                                                               \
    X(Flatten, "Flatten", 1, 99)                                                                             \
    X(Floor, "Floor", 1, 99)                                                                                 \
    X(Gather, "Gather", 1, 99)                                                                               \
    X(GatherElements, "GatherElements", 11, 99)                                                              \
    X(GatherND, "GatherND", 11, 99)                                                                          \
    X(Gelu, "Gelu", 20, 99)                                                                                  \
    X(Gemm, "Gemm", 1, 99)                                                                                   \
    X(GlobalAveragePool, "GlobalAveragePool", 1, 99)                                                         \
    X(GlobalMaxPool, "GlobalMaxPool", 1, 99)                                                                 \
    X(Greater, "Greater", 1, 99)                                                                             \
    X(GreaterOrEqual, "GreaterOrEqual", 12, 99)                                                              \
    X(GroupNormalization, "GroupNormalization", 18, 99)                                                      \
    X(HardSigmoid, "HardSigmoid", 1, 99)                                                                     \
    X(HardSwish, "HardSwish", 14, 99)                                                                        \
    X(Identity, "Identity", 1, 99)                                                                           \
    X(InstanceNormalization, "InstanceNormalization", 6, 99)                                                 \
    X(LRN, "LRN", 1, 99)                                                                                     \
    X(LayerNormalization, "LayerNormalization", 17, 99)                                                      \
    X(LeakyRelu, "LeakyRelu", 1, 99)                                                                         \
    X(Less, "Less", 1, 99)                                                                                   \
    X(LessOrEqual, "LessOrEqual", 12, 99)                                                                    \
    X(Log, "Log", 1, 99)                                                                                     \
    X(LogSoftmax, "LogSoftmax", 1, 99)                                                                       \
    X(MatMul, "MatMul", 1, 99)                                                                               \
    X(Max, "Max", 1, 99)                                                                                     \
    X(MaxPool, "MaxPool", 1, 99)                                                                             \
    X(Mean, "Mean", 1, 99)                                                                                   \
    X(Min, "Min", 1, 99)                                                                                     \
    X(Mish, "Mish", 18, 99)                                                                                  \
    X(Mod, "Mod", 10, 99)                                                                                    \
    X(Mul, "Mul", 1, 99)                                                                                     \
    X(Neg, "Neg", 1, 99)                                                                                     \
    X(Not, "Not", 1, 99)                                                                                     \
    X(Or, "Or", 1, 99)                                                                                       \
    X(PRelu, "PRelu", 1, 99)                                                                                 \
    X(Pad, "Pad", 2, 99)                                                                                     \
    X(Pow, "Pow", 1, 99)                                                                                     \
    X(Range, "Range", 11, 99)                                                                                \
    X(Reciprocal, "Reciprocal", 1, 99)                                                                       \
    X(ReduceL1, "ReduceL1", 1, 99)                                                                           \
    X(ReduceL2, "ReduceL2", 1, 99)                                                                           \
    X(ReduceLogSum, "ReduceLogSum", 1, 99)                                                                   \
    X(ReduceLogSumExp, "ReduceLogSumExp", 1, 99)                                                             \
    X(ReduceMax, "ReduceMax", 1, 99)                                                                         \
    X(ReduceMean, "ReduceMean", 1, 99)                                                                       \
    X(ReduceMin, "ReduceMin", 1, 99)                                                                         \
    X(ReduceProd, "ReduceProd", 1, 99)                                                                       \
    X(ReduceSum, "ReduceSum", 1, 99)                                                                         \
    X(ReduceSumSquare, "ReduceSumSquare", 1, 99)                                                             \
    X(Relu, "Relu", 1, 99)                                                                                   \
    X(Reshape, "Reshape", 1, 99)                                                                             \
    X(Resize, "Resize", 10, 99)                                                                              \
    X(Round, "Round", 11, 99)                                                                                \
    X(Scatter, "Scatter", 9, 10)                                                                             \
    X(ScatterElements, "ScatterElements", 11, 99)                                                            \
    X(ScatterND, "ScatterND", 11, 99)                                                                        \
    X(Selu, "Selu", 1, 99)                                                                                   \
    X(Shape, "Shape", 1, 99)                                                                                 \
    X(Sigmoid, "Sigmoid", 1, 99)                                                                             \
    X(Sign, "Sign", 9, 99)                                                                                   \
    X(Sin, "Sin", 7, 99)                                                                                     \
    X(Size, "Size", 1, 99)                                                                                   \
    X(Slice, "Slice", 1, 99)                                                                                 \
    X(Softmax, "Softmax", 1, 99)                                                                             \
    X(Softplus, "Softplus", 1, 99)                                                                           \
    X(Softsign, "Softsign", 1, 99)                                                                           \
    X(SpaceToDepth, "SpaceToDepth", 1, 99)                                                                   \
    X(Split, "Split", 1, 99)                                                                                 \
    X(Sqrt, "Sqrt", 1, 99)                                                                                   \
    X(Squeeze, "Squeeze", 1, 99)                                                                             \
    X(Sub, "Sub", 1, 99)                                                                                     \
    X(Sum, "Sum", 1, 99)                                                                                     \
    X(Tanh, "Tanh", 1, 99)                                                                                   \
    X(ThresholdedRelu, "ThresholdedRelu", 10, 99)                                                            \
    X(Tile, "Tile", 6, 99)                                                                                   \
    X(Transpose, "Transpose", 1, 99)                                                                         \
    X(Trilu, "Trilu", 14, 99)                                                                                \
    X(Unsqueeze, "Unsqueeze", 1, 99)                                                                         \
    X(Upsample, "Upsample", 7, 9)                                                                            \
    X(Where, "Where", 9, 99)                                                                                 \
    X(Xor, "Xor", 1, 99)

#endif
