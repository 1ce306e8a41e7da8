@echo off
rem The reference's settings. Paths are relative to where you are; more flags are passed on, and win:
rem   ear_teacher\train.bat --train_manifest D:\ears\train_teacher.npy --val_manifest D:\ears\val_teacher.npy
accelerate launch "%~dp0train.py" ^
    --train_manifest data/preprocessed/train_teacher.npy ^
    --val_manifest data/preprocessed/val_teacher.npy ^
    --epochs 60 ^
    --batch-size 4 ^
    --lr 3e-4 ^
    --precision 16-mixed ^
    %*
