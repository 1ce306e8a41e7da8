@echo off
rem Stage 1 with the reference's settings. Paths are relative to where you are; more flags are passed on, and win:
rem   cephalometric\train.bat --dataset_path D:\data\Aariz --resume
accelerate launch "%~dp0train.py" ^
    --dataset_path Aariz ^
    --batch_size 6 ^
    --epochs 200 ^
    --lr 1e-4 ^
    --warmup_epochs 10 ^
    --image_size 512 512 ^
    --heatmap_size 128 ^
    --num_workers 6 ^
    --mixed_precision ^
    --cvm_weight 0.3 ^
    %*
